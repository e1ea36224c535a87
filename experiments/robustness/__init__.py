"""Studies of the rules themselves: what they guarantee, and what is found of it."""
