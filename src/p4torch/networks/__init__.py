"""Properties of whole networks: each layer has a share of one bound. The mechanism is `p4torch.merging.joint`."""

from p4torch.networks.lipschitz import LipschitzNetwork
from p4torch.networks.structure import Residual

__all__ = ["LipschitzNetwork", "Residual"]
