"""Properties of whole networks, made of layers that trade shares of them. The mechanism is `p4torch.merging.joint`."""

from p4torch.networks.lipschitz import LipschitzNetwork
from p4torch.networks.structure import Residual

__all__ = ["LipschitzNetwork", "Residual"]
