"""Pure policies over instances: where requests go, which instances exchange them, how many there should be."""
