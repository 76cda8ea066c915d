"""An order → the files in which another trainer keeps it, and the proof that it did.

One direction: `rows` (what a trainer reads) → `trainers` (its settings) → `handover` (the files);
`guard` records what a trainer consumed, `consumed` compares that with the receipt.
"""
