"""Layers and flows of p4torch inside other packages, and theirs in ours: one file a package, as `p4torch.interop.zuko`.

None is imported before it is asked for. `pip install "p4torch[flows]"` installs them.
"""
