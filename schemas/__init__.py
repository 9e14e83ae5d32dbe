"""Our own words, shared by every part and light to import: standard library only."""
