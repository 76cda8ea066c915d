// Draws every chart of the page in the place of its picture. If that fails, the picture stays.
// `vegaEmbed` comes from the library that the build puts around this file.

const style = document.createElement("style");
style.textContent = `
  .tma-chart-box { background: white; color: #222; color-scheme: light; border-radius: 4px;
    padding: 8px; text-align: left; }
  .tma-chart-box .vega-embed { display: block; width: 100%; padding: 0; }
  .tma-chart-box .vega-bindings { font-size: 0.875rem; padding-top: 8px; }
  .tma-chart-box .vega-bind { display: inline-block; margin: 0 1.5em 4px 0; }
  .tma-chart-box .vega-bind-name { margin-right: 0.5em; }
  .tma-chart-box select { max-width: 100%; }`;
document.head.append(style);

for (const data of document.querySelectorAll("script.tma-chart")) {
  const image = document.querySelector(`img[src$="/${data.dataset.image}"]`);
  if (!image) continue;
  const box = document.createElement("div");
  box.className = "tma-chart-box";
  image.after(box);
  image.style.display = "none";
  // A chart is as wide as its target without regard to padding, so that has none.
  const target = document.createElement("div");
  box.append(target);
  const chart = { ...JSON.parse(data.textContent), width: "container" };
  vegaEmbed(target, chart, { actions: false, renderer: "svg" }).then(
    // It follows the window alone, but a scroll bar or the sidebar changes the page's width too.
    () => new ResizeObserver(() => dispatchEvent(new Event("resize"))).observe(box),
    (error) => {
      console.error(error);
      box.remove();
      image.style.display = "";
    },
  );
}
