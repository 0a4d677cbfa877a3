"""The verbs of `fleetmark`, a module per theme. What a verb needs is imported when it runs, so that help is instant."""
