//! Network namespaces with real hosts in them, for the demo and the tests.
