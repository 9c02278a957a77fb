"""Register the networks and the baselines in BasicSR's ARCH_REGISTRY, on import."""

from lnca_arch import NETWORKS
from lnca_arch.integrations import basicsr_compat

basicsr_compat.apply()

from lnca_arch.networks.baselines import NAFNet, Restormer  # noqa: E402

from basicsr.utils.registry import ARCH_REGISTRY  # noqa: E402

for network in (*NETWORKS.values(), NAFNet, Restormer):
    ARCH_REGISTRY.register(network)
