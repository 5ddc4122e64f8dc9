"""The door between tables and arrays, both ways."""
