"""Does training get cheaper while the network shrinks? ResNet-18 loses nine tenths of its filters over ten epochs on a part of CIFAR-10: dense, with masks, and with
`CondenseCallback`. Writes results/train_with_shrinking.csv (a row for each fit) and results/train_with_shrinking_epochs.csv, row by row: an interrupted run goes on.

The fits of a seed take turns, epoch by epoch, so that other work on the machine slows all of them down. One thread. `--quick`: one seed, three epochs, 320 images, nothing written.
Needs the data folder (FASTERPRUNE_DATA), with cifar10_jpeg.npz. The network is torchvision's, at 32 by 32; `--stem cifar` has it begin with a 3x3 convolution without pooling, which takes
sixteen times as long.
"""
import io, threading, time
import torchvision
from fastai.basics import *
from fastai.callback.all import *
from PIL import Image
from fasterprune.core.files import data_file
from peers import *
from step_overhead import Turn

cifar_stem = 'cifar' in sys.argv
epochs,n_train,n_test,bs,seeds = (3,320,320,32,1) if quick else (10,640,500,32,1) if cifar_stem else (10,2560,2000,32,3)

def images_of(split, n):
    with np.load(data_file('cifar10_jpeg.npz')) as d:
        head,scan,ends = d['jpeg_header'].tobytes(),d[f'{split}_scan'].tobytes(),np.cumsum(d[f'{split}_len'], dtype=np.int64)[:n]
        x = [np.asarray(Image.open(io.BytesIO(head+scan[a:b]+b'\xff\xd9')).convert('RGB')) for a,b in zip([0,*ends[:-1]], ends)]
        y = d[f'y_{split}'][:n]
    x = torch.from_numpy(np.stack(x)).permute(0, 3, 1, 2).contiguous().float()/255
    return (x-torch.tensor([.491,.482,.447])[:,None,None])/torch.tensor([.247,.243,.262])[:,None,None],torch.from_numpy(y).long()

def network():
    model = torchvision.models.resnet18(num_classes=10)
    if cifar_stem: model.conv1,model.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False),nn.Identity()
    return model

class EpochTurns(Callback):
    "Do an epoch when it is one's turn; note how long it took, and how good the network is."
    order = 1000
    def __init__(self, me, turn): self.me,self.turn,self.rows = me,turn,[]
    def before_epoch(self):
        self.turn.wait_for(self.me)
        self.start = time.process_time()
    def after_epoch(self):
        valid = dict(zip(self.recorder.metric_names, self.recorder.log))
        self.rows.append(dict(epoch=self.epoch, seconds=time.process_time()-self.start, valid_loss=float(valid['valid_loss']), accuracy=float(valid['accuracy']),
            parameters=n_left(self.model), sparsity=float(valid.get('sparsity', 0.))))
        self.turn.next()

def fits(seed, train, test):
    "The three fits of a seed; for each its learner and its epochs."
    ways = dict(dense=lambda: [], masks=lambda: [SparsifyCallback(.9, 'filter')], shrinking=lambda: [SparsifyCallback(.9, 'filter'), CondenseCallback()])
    turn = Turn(len(ways))
    def _fit(way, me):
        torch.set_num_threads(1)
        turn.wait_for(me)
        set_seed(seed)
        learn = Learner(tensor_dls(train, test, bs=bs), network(), loss_func=CrossEntropyLossFlat(), metrics=accuracy)
        turns = EpochTurns(me, turn)
        turn.next()
        with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(epochs, 2e-3, cbs=[*ways[way](), turns])
        done[way] = learn,turns.rows
    done = {}
    def _safe(*o):
        try: _fit(*o)
        except Exception as e: turn.fail(e)
    threads = [threading.Thread(target=_safe, args=o) for o in zip(ways, range(len(ways)))]
    for t in threads: t.start()
    for t in threads: t.join()
    if turn.failed: raise turn.failed
    return done

def main():
    root_name = 'train_with_shrinking' + '_cifar_stem'*cifar_stem
    path,path_epochs = [root/'results'/f'{root_name}{end}.csv' for end in ('','_epochs')]
    rows,by_epoch = [[] if quick or not p.exists() else pd.read_csv(p).to_dict('records') for p in (path,path_epochs)]
    train,test = images_of('train', n_train),images_of('test', n_test)
    for seed in range(seeds):
        if any(r['seed']==seed for r in rows): continue
        done = fits(seed, train, test)
        dense = sum(r['seconds'] for r in done['dense'][1])
        masks = sum(r['seconds'] for r in done['masks'][1])
        for way,(learn,es) in done.items():
            seconds = sum(e['seconds'] for e in es)
            small = learn.condense().model if way=='masks' else learn.model
            rows.append(dict(versions(seed), way=way, epochs=epochs, images=n_train, seconds=seconds, over_dense=seconds/dense, over_masks=seconds/masks,
                accuracy=es[-1]['accuracy'], valid_loss=es[-1]['valid_loss'], sparsity=es[-1]['sparsity'], parameters=n_left(small), macs=n_macs(small, test[0][:1])))
            by_epoch += [dict(versions(seed), way=way, **e) for e in es]
        if not quick:
            pd.DataFrame(rows).to_csv(path, index=False, float_format='%.6g')
            pd.DataFrame(by_epoch).to_csv(path_epochs, index=False, float_format='%.6g')
        print(pd.DataFrame(rows)[['seed','way','seconds','over_dense','over_masks','accuracy','sparsity','parameters','macs']].to_string(index=False), flush=True)

if __name__=='__main__':

    torch.set_num_threads(1)
    main()
