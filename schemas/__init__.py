"""Our own words, shared by every part and light to import: standard library only, but for
`schemas.otel`, which is loaded where traces are on."""
