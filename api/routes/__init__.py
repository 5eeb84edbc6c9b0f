"""One file a group of addresses, and what they share: the contract, its checks, the answers."""
