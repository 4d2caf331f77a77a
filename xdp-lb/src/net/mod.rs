//! What the kernel knows about the network: links, addresses, routes, neighbours.
