"""Any source → instances, and back to a file in an order."""
