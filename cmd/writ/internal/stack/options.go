package stack

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/writ-mesh/writ/internal/listen"
	"github.com/writ-mesh/writ/pilot/meshdir"
)

// Options are what `writ up` was asked for.
type Options struct {
	// Dir is the mesh directory.
	Dir string
	// State is where everything that outlives a run is kept; empty means Dir/.writ.
	State string
	// ReadyFile is written when every sidecar has acknowledged the first
	// revision; empty means none.
	ReadyFile string
	// Redis is the address of a Redis for quota counters; empty keeps them in process.
	Redis string
	// CertificateLife is the life of workload certificates.
	CertificateLife time.Duration
	// ServiceCertificateLife is the life of the certificates of the services
	// and the node agent.
	ServiceCertificateLife time.Duration
	// Authority is a file with further configuration of the authority; empty for none.
	Authority string
	// RateLimit is a file with further configuration of ratelimit; empty for none.
	RateLimit string
	// Envoy is the path of the Envoy to run.
	Envoy string
	// EnvoyLogLevel is Envoy's --log-level.
	EnvoyLogLevel string
	// Tell is called with a line on workloads that were started or ended, Problem
	// with what keeps a workload from being started; nil for nobody.
	Tell    func(string)
	Problem func(meshdir.Problem)
}

func (o *Options) tell(line string) {
	if o.Tell != nil && line != "" {
		o.Tell(line)
	}
}

func (o *Options) problem(p meshdir.Problem) {
	if o.Problem != nil {
		o.Problem(p)
	}
}

// stateFolder is where a mesh directory has its state unless --state says otherwise.
const stateFolder = ".writ"

// instancesFile is what pilot is told of the replicas by, in the state directory.
const instancesFile = "instances.yaml"

// paths are the files of one run.
type paths struct {
	dir, state string
	// sockets is a short private directory: the path of a unix socket has at most
	// 107 bytes, and state directories may lie deep.
	sockets string
	// bin is where the binaries of Writ lie: beside this one.
	bin  string
	lock *os.File
}

func openPaths(o Options) (*paths, error) {
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return nil, err
	}
	if info, err := os.Stat(dir); err != nil || !info.IsDir() {
		return nil, fmt.Errorf("%s is no mesh directory: give a directory with a workloads.yaml, such as examples/bookinfo", o.Dir)
	}
	p := &paths{dir: dir, state: filepath.Join(dir, stateFolder)}
	if o.State != "" {
		if p.state, err = filepath.Abs(o.State); err != nil {
			return nil, err
		}
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	p.bin = filepath.Dir(self)
	for _, sub := range []string{"", "logs", "ca", "pilot", "authz", "ratelimit", "nodeagent", "envoy"} {
		if err := os.MkdirAll(filepath.Join(p.state, sub), 0o700); err != nil {
			return nil, fmt.Errorf("state directory: %w; make it writable or give another with --state", err)
		}
	}
	if err := p.acquire(); err != nil {
		return nil, err
	}
	if err := p.own(o.State != ""); err != nil {
		_ = p.lock.Close()
		return nil, err
	}
	return p, p.makeSockets()
}

// Reserved is what no object of a mesh directory may name when the mesh keeps its
// state in state ("" for the default place): its state, the folders in which
// meshes of this user have their sockets, and where its services listen, as far
// as a run has settled that.
func Reserved(dir, state string) (meshdir.Reserved, error) {
	if state == "" {
		state = filepath.Join(dir, stateFolder)
	}
	state, err := filepath.Abs(state)
	if err != nil {
		return meshdir.Reserved{}, err
	}
	out := meshdir.Reserved{Folders: []string{state}}
	for _, tmp := range []string{os.TempDir(), "/tmp"} {
		out.Folders = append(out.Folders, filepath.Join(tmp, socketFolder(strings.Repeat("?", 2*socketHash))))
	}
	if a, err := readAddresses(filepath.Join(state, addressesFile)); err == nil && a.Block != 0 {
		out.Addresses = append(out.Addresses, netip.PrefixFrom(a.at(0, 0), 24))
	}
	return out, nil
}

// socketHash is how many bytes of the state directory's hash are in the name of
// its folder for sockets.
const socketHash = 6

func socketFolder(hash string) string { return fmt.Sprintf("writ-%d-%s", os.Geteuid(), hash) }

// acquire takes the state directory for this process alone; the lock goes with
// the process, however that ends.
func (p *paths) acquire() error {
	f, err := os.OpenFile(p.file("lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("state directory: %w; make it writable or give another with --state", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return fmt.Errorf("a mesh is running from %s already; stop it or give another --state", p.state)
		}
		return fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	p.lock = f
	return nil
}

// makeSockets makes the directory for sockets. Its name follows from the state
// directory, so that a restarted service finds what it had.
func (p *paths) makeSockets() error {
	sum := sha256.Sum256([]byte(p.state))
	p.sockets = filepath.Join(os.TempDir(), socketFolder(hex.EncodeToString(sum[:socketHash])))
	if err := listen.Valid("unix://" + p.socket("nodeagent-admin")); err != nil {
		p.sockets = filepath.Join("/tmp", filepath.Base(p.sockets))
	}
	if err := os.Mkdir(p.sockets, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("directory for sockets: %w", err)
	}
	info, err := os.Lstat(p.sockets)
	if err != nil {
		return err
	}
	// In a shared /tmp somebody else may have been first.
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || !info.IsDir() || int(st.Uid) != os.Geteuid() || info.Mode().Perm() != 0o700 {
		return fmt.Errorf("directory for sockets: %s is not a private directory of this user; remove it", p.sockets)
	}
	return nil
}

func (p *paths) close() {
	_ = os.Remove(p.file(runFile))
	_ = os.Remove(p.file(progressFile))
	_ = os.RemoveAll(p.sockets)
	_ = p.lock.Close()
}

// file gives a path below the state directory.
func (p *paths) file(elem ...string) string {
	return filepath.Join(append([]string{p.state}, elem...)...)
}

// socket gives the path of a socket; unix gives its address.
func (p *paths) socket(name string) string { return filepath.Join(p.sockets, name+".sock") }

func (p *paths) unix(name string) string { return "unix://" + p.socket(name) }
