"""Reading slides with H&E and expression."""
