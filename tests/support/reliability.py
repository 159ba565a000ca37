"What the tests of reliability share: processes that are forked and killed, small disks, and the table of what survived."
import os, resource, signal, subprocess, sys, traceback
from pathlib import Path
import pandas as pd, torch
from fasterprune.studies.circumstances import circumstances

root = Path(__file__).resolve().parents[2]

def write_rows(kind, rows):
    "Put rows of `kind` into results/reliability.csv, in the place of those that were there: dicts of what, tried, survived, lost, seeds."
    path = root/'results'/'reliability.csv'
    about = circumstances('fastai', 'safetensors', threads=1, folder=root)
    versions = ', '.join(f'{n} {about[n]}' for n in ('fasterprune','torch','fastai','safetensors','python'))
    about = dict(commit=about['commit'], versions=versions, **{k:about[k] for k in ('machine','cpu','caveat')})
    new = pd.DataFrame([dict(kind=kind, **r, **about) for r in rows])
    old = pd.read_csv(path, dtype=str) if path.exists() else new[:0]
    print(new.drop(columns=list(about)).to_string(index=False))
    pd.concat([old[old.kind!=kind], new.astype(str)]).sort_values('kind', kind='stable').to_csv(path, index=False)

def forked(f):
    "Run `f` in a process of its own that shares what has been imported, on one thread, for others are not forked; its number."
    if pid := os.fork(): return pid
    code = 1
    try:
        torch.set_num_threads(1)
        f()
        code = 0
    except BaseException: traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)

def done(pid):
    "Wait for a process; 0 if all was well in it."
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def ended(pid):
    "Has a process ended that nobody has waited for? It can be waited for afterwards."
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

def with_limit(n):
    "In this process no file grows beyond `n` bytes."
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n, resource.RLIM_INFINITY))

def in_small_disk(script, kbytes, *args):
    "Run a script in a mount namespace of its own, in a folder that is a file system of so many kilobytes; `None` where mounting is not allowed."
    mounted = 'd=$(mktemp -d) && mount -t tmpfs -o size="$1k" none "$d" && shift && exec "$@" "$d"'
    try: probe = subprocess.run(['unshare','-rm','sh','-c',mounted,'sh','64','ls'], capture_output=True)
    except FileNotFoundError: return None
    if probe.returncode: return None
    return subprocess.run(['unshare','-rm','sh','-c',mounted,'sh',str(kbytes),sys.executable,'-W','ignore',str(script),*args],
        capture_output=True, text=True, env={**os.environ, 'PYTHONPATH':os.pathsep.join([str(root), str(root/'tests'), os.environ.get('PYTHONPATH', '')])})
