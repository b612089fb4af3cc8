"""The protocols as bytes and values: no Twisted, no I/O, no clock."""
