"The names of `fasterprune.all` as a user calls them: pyright reads this file, and has nothing to say. It is not run."
from pathlib import Path
import torch
from fastai.learner import Learner
from torch import Tensor, nn
from fasterprune.all import (CondenseCallback, Condensed, Condenser, CondenseReport, Entry, Granularity, InputPruneCallback, InputPruner,
    InputSelector, KeepZeros, RegularizeCallback, Schedule, SelectFromNet, SparsifyCallback, Sparsifier, Ticket, agp, block, census, cifar10, compare,
    compression_path, cosine, criterion, dense_sparse_dense, digits, eval_outputs, feature_path, find_ticket, find_zeros, get_images, iterative,
    large_final, latency, linear, load_condensed, load_ticket, mnist, n_bytes, n_macs, n_of_m, n_params, one_cycle, one_shot, select_dls, sensitivity,
    sparsity_report, tensor_dls)
from fasterprune.learner import CompressionPath, FeaturePath

def train(learn:Learner):
    callbacks = [SparsifyCallback(.9), SparsifyCallback(.5, 'filter', context='local', criterion='taylor', schedule=agp, layers='body.*', every=2),
        SparsifyCallback({'0': .5}, granularity=block(4, 4), schedule=one_cycle(alpha=10, beta=4)), SparsifyCallback(.5, n_of_m(2, 4)),
        InputPruneCallback(.75, names=['a', 'b']), CondenseCallback(every=2), KeepZeros(), RegularizeCallback(.1, 'neuron')]
    learn.fit(1, cbs=callbacks)

def condense(model:nn.Module, x:Tensor, path:Path) -> Tensor:
    Sparsifier(model, 'neuron', sample=x).sparsify(.5)
    condensed = Condenser(model, x).condense(verify=True)
    report = condensed.report
    print(report.params_before, report.params_after/report.macs_after, report.max_error < 1e-10, report.removed, report.kept, report.to_frame())
    inputs = condensed.inputs
    condensed.save(path)
    again = load_condensed(path, model)
    print(find_zeros(model), sparsity_report(model), n_params(model), n_macs(model, x), n_bytes(model), latency([model], [x])[0])
    print(compare(Entry('dense', model, x, .9), Entry('small', again.model, inputs(x), .9)), eval_outputs(model, (x,)))
    return condensed.model(inputs(x))

@criterion(needs='gradient')
def ours(weight, context): return (weight*context.gradient).abs()

def tickets(learn:Learner, model:nn.Module, path:Path):
    ticket = find_ticket(learn, 2, .8)
    ticket.save(path)
    load_ticket(path).apply(model)
    print(sensitivity(learn), large_final, Schedule(lambda t: t**2), one_shot, iterative(n_steps=3), linear, cosine, dense_sparse_dense, Granularity('column', 'kw'))

def inputs(learn:Learner, model:nn.Module, x:Tensor):
    path = feature_path(learn, [50, 25], epochs=2)
    print(path.kept(25), path.to_frame(), InputPruner(model, x), SelectFromNet(5), select_dls)

def costs(learn:Learner):
    path = compression_path(learn, [.5, .25], epochs=2)
    print(path.smallest(within=.02), path.to_frame().accuracy.max(), path.learner(.5).model, len(path))

def kinds() -> list: return [Condensed, CondenseReport, InputSelector, Ticket, FeaturePath, CompressionPath]

def data():
    print(digits().train[0].shape, mnist, cifar10, get_images('digits'), census(100).shape)
    return tensor_dls((torch.zeros(8, 2), torch.zeros(8)), (torch.zeros(8, 2), torch.zeros(8)), bs=4)
