//! Signals as descriptors, masks and dispositions (signalfd(2), sigaction(2)).
