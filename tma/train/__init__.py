"""Instances in an order → a fine-tuned model and its test losses."""
