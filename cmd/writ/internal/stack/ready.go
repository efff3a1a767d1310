package stack

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/writ-mesh/writ/internal/atomicfile"
)

// Ready is what `writ up` tells about a running mesh: the content of the ready
// file, and of run.json in the state directory for the other commands.
type Ready struct {
	Revision    string            `json:"revision"`
	TrustDomain string            `json:"trustDomain"`
	Workloads   []ReadyWorkload   `json:"workloads"`
	Gateways    []ReadyGateway    `json:"gateways"`
	Services    map[string]string `json:"services"`
	// Admin has the unix sockets of the services' operator interfaces.
	Admin map[string]string `json:"admin"`
	// Logs is the directory with the log of every process.
	Logs string `json:"logs"`
	// PID is that of `writ up`.
	PID int `json:"pid"`
	// Outside is a command that runs `writ-pod request` somewhere that can reach
	// the workloads and is not in the mesh; empty means that this process can.
	Outside []string `json:"outside,omitempty"`
}

// ReadyWorkload is one replica.
type ReadyWorkload struct {
	Name           string            `json:"name"`
	Namespace      string            `json:"namespace"`
	ServiceAccount string            `json:"serviceAccount"`
	Address        string            `json:"address"`
	Ports          map[string]uint32 `json:"ports"`
	// Proxy is the sidecar's explicit proxy, Admin its administration interface.
	Proxy string `json:"proxy"`
	Admin string `json:"admin"`
	// Workload is the LocalWorkload that the replica belongs to.
	Workload string `json:"workload"`
	// Exec is a command that runs `writ-pod request` beside the program, where its
	// traffic is redirected and there is no Proxy for it.
	Exec []string `json:"exec,omitempty"`
}

// ReadyGateway is one gateway.
type ReadyGateway struct {
	// Name and Namespace are those of the Gateway object.
	Name      string `json:"name"`
	Namespace string `json:"namespace,omitempty"`
	URL       string `json:"url"`
	Admin     string `json:"admin"`
}

const runFile = "run.json"

func (r *Ready) write(path string) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return atomicfile.Write(path, append(data, '\n'), 0o600)
}

// Instances is the file with the replicas that a mesh directory had when it ran last,
// with state ("" for the default place); it need not be there.
func Instances(dir, state string) string {
	if state == "" {
		state = filepath.Join(dir, stateFolder)
	}
	return filepath.Join(state, instancesFile)
}

// errNotRunning says that no mesh runs from a directory.
var errNotRunning = errors.New("no mesh is running")

// Running gives what is known of the mesh that runs from a mesh directory, with
// state ("" for the default place).
func Running(dir, state string) (*Ready, error) {
	if state == "" {
		state = filepath.Join(dir, stateFolder)
	}
	if info, err := os.Stat(dir); err != nil || !info.IsDir() {
		return nil, fmt.Errorf("%s is no mesh directory", dir)
	}
	data, err := os.ReadFile(filepath.Join(state, runFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w from %s: start it with `writ up %s`", errNotRunning, dir, dir)
	}
	if err != nil {
		return nil, err
	}
	r := new(Ready)
	if err := json.Unmarshal(data, r); err != nil {
		return nil, fmt.Errorf("%s is corrupt (%w): start the mesh again", filepath.Join(state, runFile), err)
	}
	return r, nil
}

// Target reads a description of a mesh that something else runs, written by hand
// in the form of the ready file.
func Target(path string) (*Ready, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	r := new(Ready)
	d := json.NewDecoder(f)
	d.DisallowUnknownFields()
	if err := d.Decode(r); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return r, nil
}

// Workload finds a replica by its name, or the first replica of a LocalWorkload
// by the LocalWorkload's; both may be written as <namespace>/<name>.
func (r *Ready) Workload(name string) (*ReadyWorkload, error) {
	namespace, bare, qualified := strings.Cut(name, "/")
	if !qualified {
		namespace, bare = "", name
	}
	var names []string
	for i := range r.Workloads {
		w := &r.Workloads[i]
		if (w.Name == bare || w.Workload == bare) && (namespace == "" || w.Namespace == namespace) {
			return w, nil
		}
		names = append(names, w.Name)
	}
	return nil, fmt.Errorf("no workload %q runs; there are %s", name, strings.Join(names, ", "))
}

// Gateway finds a gateway by name, which may be written as <namespace>/<name>.
func (r *Ready) Gateway(name string) (*ReadyGateway, error) {
	namespace, bare, qualified := strings.Cut(name, "/")
	if !qualified {
		namespace, bare = "", name
	}
	var names []string
	for i := range r.Gateways {
		if r.Gateways[i].Name == bare && (namespace == "" || r.Gateways[i].Namespace == namespace) {
			return &r.Gateways[i], nil
		}
		names = append(names, r.Gateways[i].Name)
	}
	return nil, fmt.Errorf("no gateway %q runs; there are %s", name, strings.Join(names, ", "))
}
