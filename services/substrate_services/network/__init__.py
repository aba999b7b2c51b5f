"""The network of worlds: rules, links, the filter, the resolver, flows and ports (DESIGN §5)."""
