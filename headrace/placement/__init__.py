"""Pure policies over instances: where requests go, which instances exchange them, what each takes, how many there should be."""
