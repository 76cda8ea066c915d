"""Any source → instances, and back to a file in an order."""

from tma.data.load import sources

__all__ = ["sources"]
