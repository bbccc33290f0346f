"""The post-mortem: one HTML file with the charts of the pages, drawn from the same read API. `klaxon report` writes it."""
