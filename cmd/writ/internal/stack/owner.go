package stack

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/writ-mesh/writ/internal/atomicfile"
)

// ownerFile in the state directory has the path of the mesh directory that the
// state belongs to.
const ownerFile = "mesh-directory"

// own refuses the state that was copied together with its mesh directory: two
// meshes would share one root. A directory that was moved keeps its state, and
// whoever names a state directory (chosen) means that one.
func (p *paths) own(chosen bool) error {
	dir, err := filepath.EvalSymlinks(p.dir)
	if err != nil {
		return err
	}
	data, err := os.ReadFile(p.file(ownerFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	owner := strings.TrimSuffix(string(data), "\n")
	if owner == dir {
		return nil
	}
	if !chosen && owner != "" && stillOwns(owner, dir) {
		return fmt.Errorf("%s belongs to %s: remove it to make a new mesh, or pass --state %s to use its root for both", p.state, owner, p.state)
	}
	return atomicfile.Write(p.file(ownerFile), []byte(dir+"\n"), 0o600)
}

// stillOwns says that owner is another directory than dir and has a state.
func stillOwns(owner, dir string) bool {
	a, err := os.Stat(owner)
	if err != nil {
		return false
	}
	if b, err := os.Stat(dir); err == nil && os.SameFile(a, b) {
		return false
	}
	_, err = os.Stat(filepath.Join(owner, stateFolder, ownerFile))
	return err == nil
}

// notice is what a mesh leaves beside its sockets for other meshes of this user.
type notice struct {
	Dir string `json:"dir"`
	PID int    `json:"pid"`
	// Listens has the addresses of the gateways.
	Listens []string `json:"listens"`
}

const noticeFile = "mesh.json"

// leaveNotice says who has which gateway address.
func (p *paths) leaveNotice(want plan) error {
	n := notice{Dir: p.dir, PID: os.Getpid()}
	for _, r := range want.replicas {
		for _, port := range r.ports {
			n.Listens = append(n.Listens, fmt.Sprintf("%s:%d", r.address, port))
		}
	}
	data, err := json.Marshal(n)
	if err != nil {
		return err
	}
	return atomicfile.Write(filepath.Join(p.sockets, noticeFile), data, 0o600)
}

// whoListens names the mesh of this user that has an address, "another process"
// if it is none.
func (p *paths) whoListens(address string) string {
	found, err := filepath.Glob(filepath.Join(filepath.Dir(p.sockets), socketFolder("*"), noticeFile))
	if err != nil {
		return "another process"
	}
	for _, path := range found {
		var n notice
		data, err := os.ReadFile(path)
		if err != nil || json.Unmarshal(data, &n) != nil || syscall.Kill(n.PID, 0) != nil {
			continue
		}
		for _, l := range n.Listens {
			if l == address {
				return fmt.Sprintf("`writ up %s` (process %d)", n.Dir, n.PID)
			}
		}
	}
	return "another process"
}
