"""Whether works fit some readers better than others: I(x; reader) over works and audiences."""
