"""What a step costs late in a fit: what Adam keeps for a dead weight decays, until a CPU is slow with it. Writes results/late_steps.csv.

Three fits of a perceptron on noise, whose steps take turns: plain, with `SparsifyCallback(.9)`, and with it but without `settle`, which keeps those numbers from becoming denormal. A row for each
twentieth of 20,000 steps; ten minutes. `--quick`: 1,600 steps, with a mean of squares that decays ten times as fast.
"""
from fastai.basics import *
from fastai.callback.all import *
from peers import *
from fasterprune.studies.training import NoValidation
from step_overhead import interleaved, mlp

n_steps,sqr_mom,bs = (1600,.9,64) if quick else (20_000,.99,64)

class Unsettled(SparsifyCallback):
    def after_step(self): self.sparsifier.apply()

def fit_of(make):
    "A fit in four epochs, and what it takes."
    torch.manual_seed(0)
    batches = [(torch.randn(bs, 784), torch.randint(0, 10, (bs,))) for _ in range(50)]
    train = DataLoader(range(n_steps//4), bs=None, create_item=lambda i: batches[i%50], n=n_steps//4)
    learn = Learner(DataLoaders(train, train), mlp(), CrossEntropyLossFlat(), opt_func=partial(Adam, sqr_mom=sqr_mom))
    def _fit(cbs):
        with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(4, 1e-3, cbs=[*cbs, *make(), NoValidation()])
    return _fit

def main():
    ways = {'plain':lambda: [], 'masked':lambda: [SparsifyCallback(.9)], 'masked, not settled':lambda: [Unsettled(.9)]}
    times = pd.DataFrame(dict(zip(ways, interleaved([fit_of(m) for m in ways.values()]))))
    ms = 1e3*times.groupby(times.index*20//n_steps).median()
    rows = [dict(way=w, until_step=(i+1)*n_steps//20, ms=ms.loc[i, w], over_plain=ms.loc[i, w]/ms.loc[i, 'plain']) for w in ways for i in ms.index]
    write(pd.DataFrame(rows), 'late_steps')

if __name__=='__main__':
    torch.set_num_threads(1)
    main()
