"""File formats of weights. Nothing else knows one."""
