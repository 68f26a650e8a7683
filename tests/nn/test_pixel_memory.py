"""What a gated stack keeps for backward."""

import pytest
import torch

from fastvae.nn.gated_pixelcnn import GatedPixelCNN
from tests.support.pixel_networks import context_of, contexts, make_net


def saved_bytes(network, x, context):
    """Bytes that autograd keeps alive for backward, every storage counted once; parameters live anyway."""
    kept, parameters = {}, {p.untyped_storage().data_ptr() for p in network.parameters()}

    def pack(t):
        storage = t.untyped_storage()
        kept[storage.data_ptr()] = storage
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        network(x, context)
    return sum(storage.nbytes() for address, storage in kept.items() if address not in parameters)


@contexts
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_gated_stack_keeps_no_more_than_the_reference(context, memory_format):
    x, given = torch.zeros(2, 1, 12, 12), context_of(context, 2, 12, 12)
    kept = {
        impl: saved_bytes(
            make_net(GatedPixelCNN, layers=3, width=16, impl=impl, **context).to(memory_format=memory_format),
            x.contiguous(memory_format=memory_format),
            given,
        )
        for impl in ("cpp", "reference")
    }
    assert 0 < kept["cpp"] <= kept["reference"]
