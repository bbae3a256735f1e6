"""Ways to linearize a network: each yields masks at exact budgets."""
