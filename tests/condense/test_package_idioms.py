"What networks of packages write, each in a few lines: half of the heads or neurons are dead, and `right` says how many parameters the others have."
import pytest, torch
from torch import nn
from torch.nn import functional as F
from fasterprune.all import Condenser
from fasterprune.graph.interpreter import failed_rules

def dead(layer, units, d=0):
    with torch.no_grad():
        layer.weight.transpose(0, d)[units] = 0
        if layer.bias is not None: layer.bias[units] = 0

mask = torch.ones(3,10,dtype=torch.long)
mask[1,6:] = 0

class Heads(nn.Module):
    "Half of four heads of size 8 are dead: 4*32*16 weights and 3*16+32 biases are left"
    right,bias = 4*32*16+3*16+32,True
    def __init__(self, d=32, h=4, kv=4):
        super().__init__()
        self.head_dim,self.num_key_value_groups = d//h,h//kv
        self.q,self.k,self.v,self.o = [nn.Linear(i,o,bias=self.bias) for i,o in ((d,d),(d,kv*d//h),(d,kv*d//h),(d,d))]
        for l,n in ((self.q,16),(self.k,4*kv),(self.v,4*kv)): dead(l, slice(0,n))
    def qkv(self, x): return [f(x).view(*x.shape[:-1], -1, self.head_dim).transpose(1,2) for f in (self.q,self.k,self.v)]
    def out(self, y): return self.o(y.transpose(1,2).reshape(*y.shape[:1], y.shape[2], -1).contiguous())
    def forward(self, x, m=None):
        q,k,v = self.qkv(x)
        return self.out((q@k.transpose(2,3)*self.head_dim**-.5).softmax(-1)@v)
    sample = torch.randn(3,10,32)

class AsksMask(Heads):
    def forward(self, x, m):
        q,k,v = self.qkv(x)
        m = m.bool()[:,None,None,:].expand(-1,1,x.shape[1],-1)
        if not torch.compiler.is_compiling() and m.all(): m = None
        return self.out(F.scaled_dot_product_attention(q,k,v,attn_mask=m))
    sample = Heads.sample,mask

class WhereScalar(Heads):
    def forward(self, x, m):
        q,k,v = self.qkv(x)
        m = torch.where(m.bool()[:,None,None,:], torch.tensor(0., dtype=x.dtype), torch.finfo(x.dtype).min)
        return self.out((q@k.transpose(2,3)*self.head_dim**-.5+m).softmax(-1)@v)
    sample = Heads.sample,mask

class Rotary(Heads):
    def __init__(self):
        super().__init__()
        self.register_buffer('inv_freq', 100**-(torch.arange(0,8,2)/8), persistent=False)
    def tables(self, x, ids):
        f = ids[...,None].float()*self.inv_freq.to(device=x.device, dtype=torch.float)
        e = torch.cat((f,f), -1)
        return e.cos().to(x.dtype).unsqueeze(1),e.sin().to(x.dtype).unsqueeze(1)
    def rotate_half(self, x): return torch.cat((-x[...,x.shape[-1]//2:],x[...,:x.shape[-1]//2]), -1)
    def forward(self, x):
        q,k,v = self.qkv(x)
        cos,sin = self.tables(x, torch.arange(x.shape[1])[None])
        q,k = [y*cos+self.rotate_half(y)*sin for y in (q,k)]
        return self.out((q@k.transpose(2,3)*self.head_dim**-.5).softmax(-1)@v)
class RotaryMatmul(Rotary): # as in llama's older form: a matrix product of buffer and positions
    def tables(self, x, ids):
        f = (self.inv_freq[None,:,None].float().expand(ids.shape[0],-1,1)@ids[:,None,:].float()).transpose(1,2)
        e = torch.cat((f,f), -1)
        return e.cos().to(x.dtype).unsqueeze(1),e.sin().to(x.dtype).unsqueeze(1)

class RepeatKV(Heads):
    right,bias = 2*32*16+2*32*8,False
    def __init__(self): super().__init__(kv=2)
    def repeat(self, y):
        b,h,t,d = y.shape
        return y[:,:,None].expand(b,h,self.num_key_value_groups,t,d).reshape(b,h*self.num_key_value_groups,t,d)
    def forward(self, x):
        q,k,v = self.qkv(x)
        k,v = self.repeat(k),self.repeat(v)
        return self.out((q@k.transpose(2,3)*self.head_dim**-.5).softmax(-1)@v)
class RepeatKVSdpa(RepeatKV):
    def forward(self, x):
        q,k,v = self.qkv(x)
        return self.out(F.scaled_dot_product_attention(q,self.repeat(k),self.repeat(v),is_causal=True,scale=self.head_dim**-.5))
class GroupedSdpa(RepeatKV): # enable_gqa
    def forward(self, x):
        q,k,v = self.qkv(x)
        return self.out(F.scaled_dot_product_attention(q,k,v,is_causal=True,scale=self.head_dim**-.5,enable_gqa=True))

class ZerosBias(Heads):
    def __init__(self):
        super().__init__()
        self.n_heads = 4
    def forward(self, x):
        q,k,v = self.qkv(x)
        bias = torch.zeros((1,self.n_heads,x.shape[1],x.shape[1]), dtype=x.dtype)
        return self.out((q@k.transpose(2,3)+bias).softmax(-1)@v)
class EmbeddedBias(Heads):
    right = Heads.right+19*2
    def __init__(self):
        super().__init__()
        self.n_heads,self.rel = 4,nn.Embedding(19,4)
    def forward(self, x, m):
        q,k,v = self.qkv(x)
        i = torch.arange(x.shape[1])
        bias = self.rel(i[:,None]-i[None]+9).permute(2,0,1).unsqueeze(0)
        bias = torch.where(m.bool()[:,None,None,:].expand(-1,1,x.shape[1],-1), bias, torch.finfo(x.dtype).min).contiguous()
        return self.out(F.scaled_dot_product_attention(q,k,v,attn_mask=bias,scale=1.))
    sample = Heads.sample,mask

class Conv1D(nn.Module):
    def __init__(self, nf, nx):
        super().__init__()
        self.nf,self.nx,self.weight,self.bias = nf,nx,nn.Parameter(torch.randn(nx,nf)*.2),nn.Parameter(torch.randn(nf)*.2)
    def forward(self, x): return torch.addmm(self.bias, x.view(-1,x.size(-1)), self.weight).view(x.size()[:-1]+(self.nf,))
class GPT2(nn.Module):
    right = 32*48+48 + 16*32+32
    def __init__(self):
        super().__init__()
        self.embed_dim,self.num_heads,self.head_dim,self.split_size = 32,4,8,32
        self.c_attn,self.c_proj = Conv1D(96,32),Conv1D(32,32)
        for i in range(3): dead(self.c_attn, slice(32*i, 32*i+16), 1)
    def forward(self, x):
        q,k,v = self.c_attn(x).split(self.split_size, dim=2)
        q,k,v = [y.view((*y.shape[:-1],-1,self.head_dim)).transpose(1,2) for y in (q,k,v)]
        y = F.scaled_dot_product_attention(q,k,v,is_causal=True,scale=self.head_dim**-.5).transpose(1,2)
        return self.c_proj(y.reshape(*y.shape[:-2],-1).contiguous())
    sample = Heads.sample
class GPT2MLP(nn.Module):
    right = 32*12+12 + 12*32+32
    def __init__(self):
        super().__init__()
        self.c_fc,self.c_proj = Conv1D(24,32),Conv1D(32,24)
        dead(self.c_fc, slice(0,12), 1)
    def forward(self, x): return self.c_proj(F.gelu(self.c_fc(x)))
    sample = Heads.sample

class Beit(nn.Module):
    right = 48*32 + 2*16 + 16*32+32 + 19*2
    def __init__(self):
        super().__init__()
        self.num_heads,self.scale = 4,8**-.5
        self.qkv,self.proj = nn.Linear(32,96,bias=False),nn.Linear(32,32)
        self.q_bias,self.v_bias = nn.Parameter(torch.randn(32)),nn.Parameter(torch.randn(32))
        self.register_buffer('k_bias', torch.zeros(32), persistent=False)
        self.table = nn.Parameter(torch.randn(19,4))
        i = torch.arange(10)
        self.register_buffer('idx', i[:,None]-i[None]+9, persistent=False)
        with torch.no_grad():
            for i in range(3): self.qkv.weight[32*i:32*i+16] = 0
            self.q_bias[:16] = 0
            self.v_bias[:16] = 0
    def forward(self, x):
        B,N,C = x.shape
        qkv = F.linear(x, self.qkv.weight, torch.cat((self.q_bias,self.k_bias,self.v_bias))).reshape(B,N,3,self.num_heads,-1).permute(2,0,3,1,4)
        q,k,v = qkv.unbind(0)
        a = (q*self.scale)@k.transpose(-2,-1)+self.table[self.idx.view(-1)].view(10,10,-1).permute(2,0,1).contiguous().unsqueeze(0)
        return self.proj((a.softmax(-1)@v).transpose(1,2).reshape(B,N,-1))
    sample = Heads.sample
class BeitSdpa(Beit):
    def forward(self, x):
        B,N,C = x.shape
        q,k,v = F.linear(x, self.qkv.weight, torch.cat((self.q_bias,self.k_bias,self.v_bias))).reshape(B,N,3,self.num_heads,-1).permute(2,0,3,1,4).unbind(0)
        bias = self.table[self.idx.view(-1)].view(10,10,-1).permute(2,0,1).contiguous().unsqueeze(0)
        return self.proj(F.scaled_dot_product_attention(q,k,v,attn_mask=bias).transpose(1,2).reshape(B,N,-1))

class SwinV2(nn.Module):
    right = 48*32 + 16*32+32 + 2 + 2*8+8 + 8*2
    def __init__(self):
        super().__init__()
        self.num_heads = 4
        self.qkv,self.proj,self.logit_scale = nn.Linear(32,96,bias=False),nn.Linear(32,32),nn.Parameter(torch.rand(4,1,1))
        self.cpb = nn.Sequential(nn.Linear(2,8),nn.ReLU(),nn.Linear(8,4,bias=False))
        self.register_buffer('coords', torch.randn(1,1,19,2), persistent=False)
        i = torch.arange(10)
        self.register_buffer('idx', i[:,None]-i[None]+9, persistent=False)
        with torch.no_grad():
            for i in range(3): self.qkv.weight[32*i:32*i+16] = 0
    def forward(self, x):
        B,N,C = x.shape
        q,k,v = self.qkv(x).reshape(B,N,3,self.num_heads,-1).permute(2,0,3,1,4).unbind(0)
        a = F.normalize(q,dim=-1)@F.normalize(k,dim=-1).transpose(-2,-1)*torch.clamp(self.logit_scale,max=4.6).exp()
        table = self.cpb(self.coords).view(-1,self.num_heads)
        bias = 16*torch.sigmoid(table[self.idx.view(-1)].view(10,10,-1).permute(2,0,1).contiguous().unsqueeze(0))
        return self.proj(((a+bias).softmax(-1)@v).transpose(1,2).reshape(B,N,-1)) # where it says C, heads have to stay
    sample = Heads.sample

class ViewedNorm(nn.LayerNorm):
    def forward(self, x):
        b,c,h,w = x.shape
        x = F.layer_norm(x.view(b,c,-1).transpose(1,2), self.normalized_shape, self.weight, self.bias, self.eps)
        return x.transpose(1,2).view(b,c,h,w)
class Patches(nn.Module):
    right = 3*4+4 + 2*4 + 4*2+2
    def __init__(self):
        super().__init__()
        self.a,self.n,self.b = nn.Conv2d(3,8,1),ViewedNorm(8),nn.Conv2d(8,2,1)
        dead(self.a, slice(0,4))
        nn.init.uniform_(self.n.bias)
        nn.init.zeros_(self.n.bias[:4])
        nn.init.zeros_(self.n.weight[:4])
    def forward(self, x): return self.b(self.n(self.a(x)))
    sample = torch.randn(2,3,8,8)

class Stacked(nn.Module):
    right = 2*(3*4+4) + 4*2+2
    def __init__(self):
        super().__init__()
        self.a,self.b,self.c = nn.Conv2d(3,8,1),nn.Conv2d(3,8,1),nn.Conv2d(8,2,1)
        dead(self.a, slice(0,4))
        dead(self.b, slice(0,4))
    def forward(self, x): return self.c(torch.stack([self.a(x),self.b(x)]).sum(dim=0))
    sample = torch.randn(2,3,8,8)

class ExpandedMask(Heads):
    right = Heads.right+2*100
    def __init__(self):
        super().__init__()
        self.num_heads,self.bias_ = 4,nn.Parameter(torch.randn(1,4,10,10))
        self.register_buffer('mask', torch.zeros(1,10,10))
    def forward(self, x):
        q,k,v = self.qkv(x)
        m = self.mask.view(1,1,1,10,10).expand(x.shape[0],-1,self.num_heads,-1,-1).reshape(-1,self.num_heads,10,10)
        return self.out(F.scaled_dot_product_attention(q,k,v,attn_mask=self.bias_+m))
class OneHead(Beit):
    right = 24*32 + 2*8 + 8*32+32 + 19*1
    def __init__(self):
        super().__init__()
        with torch.no_grad():
            for i in range(3): self.qkv.weight[32*i:32*i+24] = 0
            self.q_bias[:24] = 0
            self.v_bias[:24] = 0
class SizeOf(nn.Module):
    right = 32*12+12 + 12*32+32
    def __init__(self):
        super().__init__()
        self.n,self.a,self.b = 24,nn.Linear(32,24),nn.Linear(24,32)
        dead(self.a, slice(0,12))
    def forward(self, x):
        h = self.a(x)
        return self.b(h.view(-1, h.size(-1)).view(h.size()[:-1]+(self.n,)))
    sample = Heads.sample

class OpenSize(Beit):
    right = 48*32 + 2*16 + 16*32+32 + 25*2
    sample = torch.randn(3,5,32)
    def __init__(self):
        super().__init__()
        self.window_area,self.table = 4,nn.Parameter(torch.randn(25,4))
        i = torch.arange(5)
        self.register_buffer('idx', i[:,None]+5*i[None], persistent=False)
    def forward(self, x):
        B,N,C = x.shape
        q,k,v = F.linear(x, self.qkv.weight, torch.cat((self.q_bias,self.k_bias,self.v_bias))).reshape(B,N,3,self.num_heads,-1).permute(2,0,3,1,4).unbind(0)
        bias = self.table[self.idx.view(-1)].view(self.window_area+1,self.window_area+1,-1).permute(2,0,1).contiguous()
        return self.proj(F.scaled_dot_product_attention(q,k,v,attn_mask=bias).transpose(1,2).reshape(B,N,-1))
class RMS(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.weight,self.eps = nn.Parameter(torch.rand(n)+.5),1e-6
    def forward(self, x): return self.weight*(x*torch.rsqrt(x.pow(2).mean(-1, keepdim=True)+self.eps))
class NormedHeads(Heads):
    right = Heads.right+2*8
    def __init__(self):
        super().__init__()
        self.qn,self.kn = RMS(8),RMS(8)
    def forward(self, x):
        q,k,v = self.qkv(x)
        return self.out(F.scaled_dot_product_attention(self.qn(q),self.kn(k),v))
cases = [NormedHeads,OpenSize,ExpandedMask,OneHead,SizeOf,Heads,AsksMask,
    WhereScalar,Rotary,RotaryMatmul,RepeatKV,RepeatKVSdpa,GroupedSdpa,ZerosBias,EmbeddedBias,GPT2,GPT2MLP,Beit,BeitSdpa,SwinV2,Patches,Stacked]

@pytest.mark.parametrize('cls', cases)
def test_what_is_dead_goes(cls):
    torch.manual_seed(0)
    net,xs = cls().double().eval(),[x.double() if x.is_floating_point() else x for x in (cls.sample if isinstance(cls.sample, tuple) else (cls.sample,))]
    failed = len(failed_rules)
    c = Condenser(net, tuple(xs), inputs=False).condense()
    assert c.report.params_after==cls.right and len(failed_rules)==failed, c.report
    for n in (len(xs[0]),1,2):
        with torch.no_grad(): a,b = [m(*[x[:n] for x in xs]) for m in (net,c.model)]
        assert (a-b).abs().max() <= 1e-10*a.abs().max()
