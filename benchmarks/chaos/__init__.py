"""A search under faults of every kind, planted one after the other, and what each of them costs."""
