"""Every setting: sections, names, defaults, variants, flags, config.json."""
