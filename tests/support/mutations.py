"Files as damage or a stranger may leave them: mutations of bytes, of what a file says, and of its tensors; and their digests made anew."
import json, math
from copy import deepcopy
import torch
from safetensors.torch import load, save
from fasterprune.core.tensor_files import digest_of

odd = [None, True, False, 0, 1, -1, 2, 3, 7, 255, 2**31, 2**53+1, 2**63, 10**30, 0.5, 1.0, -0.0, 1e308, math.nan, math.inf, -math.inf, '', 'x', '0', '0.weight', 'a'*3000, '\ud800', '\0',
    '..', '/etc/passwd', [], {}, [[]], [None], [0], [1, 2, 3], {'': 0}, {'_modules': {}}, {'training': False}, {'__class__': 'x'}, {'forward': 1}, [[1e308]*3], list(range(50))]
names = ['_modules','_parameters','__class__','forward','training','weight','in_features','', '0', '1', 'num_heads', 'stride', 'padding', 'eps', 'dims', 'extra', 'a.b', '0.0']
of_new_files,of_new_modules = ('tensors','parts','names','layouts'),('layers','open','buffers','sample') # version 0.1 did not know them

def deep(n): return json.loads('['*n+']'*n)

def parts(data):
    "Header, its texts and the bytes of the tensors of a file."
    n = int.from_bytes(data[:8], 'little')
    header = json.loads(data[8:8+n])
    return header,header.pop('__metadata__', {}),data[8+n:]

def joined(header, texts, body):
    source = json.dumps({'__metadata__':texts, **header} if texts else header).encode()
    source += b' '*(-len(source)%8)
    return len(source).to_bytes(8, 'little')+source+body

def bytes_changed(data, rnd):
    "A few bytes are others, are gone, or are there twice."
    data,kind = bytearray(data),rnd.randrange(7)
    header = 8+int.from_bytes(data[:8], 'little')
    def _at(): return rnd.randrange(min(len(data), header if rnd.random()<.7 else len(data)))
    i = _at()
    if kind==0:
        for _ in range(rnd.choice((1, 1, 2, 8))): data[_at()] ^= 1<<rnd.randrange(8)
    elif kind==1:
        for _ in range(rnd.choice((1, 3))): data[_at()] = rnd.choice(b'"{}[],:0123456789-eE.\\ \0\xff')
    elif kind==2: del data[rnd.randrange(len(data)):]
    elif kind==3: del data[i:i+rnd.choice((1, 8, 100))]
    elif kind==4: data[i:i] = data[i:i+rnd.choice((1, 8, 64))]
    elif kind==5: data[i:i+16] = bytes(16)
    else: data[:8] = rnd.choice((0, 1, 2**20, 2**40, 2**63, len(data), len(data)-8)).to_bytes(8, 'little')
    return bytes(data)

def places(o, at=()):
    "All places in plain data."
    yield at
    for k,v in (o.items() if isinstance(o, dict) else enumerate(o) if isinstance(o, list) else ()): yield from places(v, (*at, k))

def at(o, path):
    for k in path: o = o[k]
    return o

def plain_changed(o, rnd):
    "One place in plain data says something else."
    all_ = [*places(o)][1:]
    if not all_: return {rnd.choice(names):deepcopy(rnd.choice(odd))}
    depth = rnd.choice((1, 2, 3, 4, 5, 9))
    path = rnd.choice([p for p in all_ if len(p)<=depth] if rnd.random()<.6 else all_)
    *up,k = path
    parent,kind = at(o, up),rnd.randrange(10)
    v = parent[k]
    def _odd(*more): return deepcopy(rnd.choice([*more, *odd]))
    if kind==0: parent[k] = _odd()
    elif kind==1: del parent[k]
    elif kind==2 and isinstance(parent, dict): parent[rnd.choice(names)] = _odd(v)
    elif kind==3 and isinstance(v, list) and v: rnd.shuffle(v)
    elif kind==4 and isinstance(v, list): v.insert(rnd.randint(0, len(v)), _odd(*v))
    elif kind==5 and isinstance(parent, dict): parent[rnd.choice([*parent, *names])] = parent.pop(k)
    elif kind==6: parent[k] = deepcopy(at(o, rnd.choice(all_)))
    elif kind==7: parent[k] = deep(rnd.choice((5, 40, 800)))
    elif isinstance(v, dict): v[rnd.choice(names)] = _odd()
    elif type(v) is int: parent[k] = rnd.choice((v+1, v-1, -v, 2*v, 0, v+10**9, float(v), str(v)))
    elif type(v) is float: parent[k] = rnd.choice((v+1, -v, math.nan, math.inf, 1e300))
    elif type(v) is bool: parent[k] = not v
    elif type(v) is str: parent[k] = rnd.choice((v+'x', v[:-1], v.upper(), v*400))
    else: parent[k] = _odd()
    return o

def tensors_changed(tensors, rnd):
    "One tensor is another; are only its numbers others?"
    k = rnd.choice([*tensors])
    t,kind = tensors[k],rnd.randrange(12)
    if kind==0 and t.numel() and t.is_floating_point(): t.view(-1)[rnd.randrange(t.numel())] = rnd.choice((math.nan, math.inf, -math.inf))
    elif kind==1 and t.numel() and t.dtype!=torch.bool: t.view(-1)[rnd.randrange(t.numel())] += rnd.choice((1, -1, 2))
    elif kind==2: tensors[k] = t.to(rnd.choice((torch.float16, torch.float64, torch.int64, torch.bool, torch.uint8, torch.bfloat16, torch.float32)))
    elif kind==3 and t.ndim: tensors[k] = t[:-1].clone()
    elif kind==4 and t.ndim: tensors[k] = torch.cat([t, t[:1]])
    elif kind==5: tensors[k] = t.reshape(-1)
    elif kind==6 and t.ndim>1: tensors[k] = t.transpose(0, 1).contiguous()
    elif kind==7: del tensors[k]
    elif kind==8: tensors[rnd.choice(('extra','model.extra','inputs.index7','inputs.index0'))] = t.clone()
    elif kind==9: tensors[rnd.choice([*tensors])] = t.clone()
    elif kind==10: tensors[k] = torch.zeros(0, *t.shape[1:], dtype=t.dtype)
    elif t.numel(): tensors[k] = t.flip(0) if t.ndim else t+1
    return tensors

def header_changed(header, rnd):
    "One entry of the header is another."
    k = rnd.choice([*header])
    e,kind = header[k],rnd.randrange(6)
    if kind==0: e['dtype'] = rnd.choice(('F16','BF16','F32','I32','F64','I64','U8','BOOL','F8_E4M3','C64','X', 3))
    elif kind==1: e['shape'] = rnd.choice((e['shape'][::-1], [*e['shape'], 1], [1, *e['shape']], e['shape'][:-1], [2**40], [-1], [0], [math.prod(e['shape'])]))
    elif kind==2: e['data_offsets'] = rnd.choice(([0, 2**50], e['data_offsets'][::-1], [e['data_offsets'][0]+4, e['data_offsets'][1]], [0, 0]))
    elif kind==3: header[rnd.choice([*header, 'x'])] = header.pop(k)
    elif kind==4: header[k] = deepcopy(rnd.choice(odd))
    else: plain_changed(header, rnd)
    return header

def mutated(data, key, rnd):
    """A mutated safetensors file, which of its parts, and what became of its digest: as it was, gone (as in files of version 0.1), or made anew.
    A quarter of the digests are as they were, a quarter gone, half made anew."""
    what,digest = rnd.choice(('bytes','blueprint','blueprint','blueprint','tensors','header')),rnd.choice(('old','none','new','new'))
    header,texts,body = parts(data)
    about,tensors = json.loads(texts[key]),load(data)
    if what=='bytes': data = bytes_changed(data, rnd)
    elif what=='header': data = joined(header_changed(header, rnd), texts, body)
    elif what=='tensors':
        tensors = tensors_changed(tensors, rnd)
        data = save({k:v.contiguous().clone() for k,v in tensors.items()}, texts)
    else: data = joined(header, {key:json.dumps(plain_changed(about, rnd))}, body)
    return (data if digest=='old' else redigested(data, key, digest, what, rnd)),what,digest

def redigested(data, key, digest, what, rnd):
    "With a digest that is right, or without one; as it is if it cannot be read."
    try:
        header,texts,body = parts(data)
        about,tensors = json.loads(texts[key]),load(data)
        about.pop('digest', None)
        if digest=='none': # as a file of version 0.1, which knew less
            for k in of_new_files: about.pop(k, None)
            for k in of_new_modules: about.get('modules', {}).pop(k, None)
            about.update({k:'0.1.0' for k in ('fasterprune','version') if k in about})
        else:
            if what!='blueprint' and rnd.random()<.7:
                about['tensors'] = {k:[str(t.dtype).removeprefix('torch.'), list(t.shape), bool(torch.isfinite(t).all())] for k,t in tensors.items()}
            about['digest'] = digest_of(tensors, about)
        return joined(header, {**texts, key:json.dumps(about)}, body)
    except Exception: return data # what cannot be read has no digest

def text_changed(data, rnd):
    "A CSV file with another line, column, character or encoding."
    lines,kind = data.split(b'\n'),rnd.randrange(15)
    i = rnd.randrange(max(1, len(lines)-1))
    cells = lines[i].split(b',')
    if kind==0: data = bytes_changed(data+b' '*8, rnd)[:-8]
    elif kind==1: data = data[:rnd.randrange(len(data))]
    elif kind==2: data = b'\n'.join(lines[:i]+lines[i+1:])
    elif kind==3: data = b'\n'.join(lines[:i]+[lines[i]]+lines[i:])
    elif kind==4: data = data.decode().encode(rnd.choice(('utf-16','utf-8-sig','utf-32','utf-16-le')))
    elif kind==5: data = data.replace(b',', rnd.choice((b';', b'\t', b',,')), rnd.choice((1, -1)))
    elif kind==6: data = data.replace(b'\n', rnd.choice((b'\r\n', b'\r', b'\n\n')), rnd.choice((1, -1)))
    elif kind==7: data = b'\n'.join(lines[:i]+[b','.join(rnd.sample(cells, len(cells)))]+lines[i+1:])
    elif kind==8: data = b'\n'.join(lines[:i]+[b','.join(cells[:-1])]+lines[i+1:])
    elif kind==9:
        cells[rnd.randrange(len(cells))] = rnd.choice((b'', b'nan', b'inf', b'-1', b'1e999', b'x', b'0x1', b'"', b'"a\nb"', b'\0', b'\xff', b'1_0', '\u0663'.encode(), b'9'*200_000))
        data = b'\n'.join(lines[:i]+[b','.join(cells)]+lines[i+1:])
    elif kind==10: data = data.replace(rnd.choice(cells), b'other', 1)
    elif kind==11: data += rnd.choice((b'cpu,0', b'\0', b'"', b'\xc3', b'\n\n', b'cpu,1,2,3,4,5,6,7,8,9,10,11,12\n'))
    elif kind==12: data = rnd.randbytes(rnd.randrange(1, 400))
    elif kind==13: data = bytes(len(data))
    else: data = data.replace(b'.', b',', 1)
    return data
