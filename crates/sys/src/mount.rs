//! Mounts by the new and the old mount API (mount(2), open_tree(2), mount_setattr(2)).
