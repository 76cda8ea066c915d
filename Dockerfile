# The two commands of the README in a container:
#   docker build -t tma . && docker run --rm -v tma-cache:/root/.cache tma make study
FROM python:3.11-slim
RUN apt-get update && apt-get install --yes --no-install-recommends git make && rm -rf /var/lib/apt/lists/*
WORKDIR /tma
COPY . .
RUN make .venv/.ready
ENV PATH=/tma/.venv/bin:$PATH
CMD ["make", "study"]
