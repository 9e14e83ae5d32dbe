"""One file per provider, each pure: values in, values out. `workers.registry` finds them by listing this folder."""
