package compose_test

import (
	"encoding/json"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/writ-mesh/writ/pilot/meshdir"
)

// composeFile is what the tests look at in compose.yaml.
type composeFile struct {
	Services map[string]struct {
		Image       string
		User        string
		ReadOnly    bool     `yaml:"read_only"`
		CapDrop     []string `yaml:"cap_drop"`
		CapAdd      []string `yaml:"cap_add"`
		SecurityOpt []string `yaml:"security_opt"`
		Restart     string
		NetworkMode string `yaml:"network_mode"`
		Command     []string
		Networks    yaml.Node
		DependsOn   map[string]struct {
			Condition string
			Restart   bool
		} `yaml:"depends_on"`
	}
}

func readFiles(t *testing.T) (composeFile, []meshdir.Instance) {
	t.Helper()
	var c composeFile
	data, err := os.ReadFile("compose.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(data, &c); err != nil {
		t.Fatal(err)
	}
	data, err = os.ReadFile("instances.yaml")
	if err != nil {
		t.Fatal(err)
	}
	instances, problems := meshdir.ParseInstances("instances.yaml", data)
	if len(problems) > 0 || len(instances) == 0 {
		t.Fatal(problems)
	}
	return c, instances
}

// address reads networks: {mesh: {ipv4_address: X}}.
func address(t *testing.T, n yaml.Node) string {
	t.Helper()
	var networks struct {
		Mesh struct {
			Address string `yaml:"ipv4_address"`
		}
	}
	if err := n.Decode(&networks); err != nil {
		t.Fatal(err)
	}
	return networks.Mesh.Address
}

// TestFilesAgree: compose.yaml runs what instances.yaml says, at these addresses
// and as these users; else the node agent refuses, or the mesh calls nobody.
func TestFilesAgree(t *testing.T) {
	c, instances := readFiles(t)
	uids := make(map[string]bool)
	for _, in := range instances {
		pod, proxy := c.Services[in.Name], c.Services[in.Name+"-sidecar"]
		if in.Spec.Type == "gateway" {
			proxy = pod
		} else if proxy.NetworkMode != "service:"+in.Name {
			t.Errorf("%s-sidecar is in network %q", in.Name, proxy.NetworkMode)
		}
		if got := address(t, pod.Networks); got != in.Spec.Address {
			t.Errorf("%s has address %q in compose.yaml and %q in instances.yaml", in.Name, got, in.Spec.Address)
		}
		if in.Spec.UID == nil || *in.Spec.UID < 20000 {
			t.Fatalf("%s: the user of the proxy is not given, or one of the system's", in.Name)
		}
		uid := strconv.Itoa(int(*in.Spec.UID))
		if proxy.User != uid+":1337" || uids[uid] {
			t.Errorf("the proxy of %s runs as %q, want %s:1337, and nobody else as that", in.Name, proxy.User, uid)
		}
		uids[uid] = true
		if want := "/etc/envoy/" + in.Namespace + "-" + in.Name + ".json"; !slices.Contains(proxy.Command, want) {
			t.Errorf("the proxy of %s starts with %q, want %s", in.Name, proxy.Command, want)
		}
	}
	data, err := os.ReadFile("target.json")
	if err != nil {
		t.Fatal(err)
	}
	var target struct {
		Workloads []struct{ Name, Address string }
	}
	if err := json.Unmarshal(data, &target); err != nil {
		t.Fatal(err)
	}
	for _, w := range target.Workloads {
		if !slices.ContainsFunc(instances, func(in meshdir.Instance) bool { return in.Name == w.Name && in.Spec.Address == w.Address }) {
			t.Errorf("target.json has %s at %s, instances.yaml has not", w.Name, w.Address)
		}
	}
	if len(target.Workloads) != len(instances)-1 {
		t.Errorf("target.json has %d workloads, instances.yaml %d and a gateway", len(target.Workloads), len(instances)-1)
	}
}

// TestContainersAreConfined: nothing is writable but volumes, nobody has
// capabilities but those who set the redirection, and no program is started
// where there is no redirection yet.
func TestContainersAreConfined(t *testing.T) {
	c, _ := readFiles(t)
	for name, s := range c.Services {
		if !s.ReadOnly || !slices.Equal(s.CapDrop, []string{"ALL"}) || !slices.Contains(s.SecurityOpt, "no-new-privileges:true") {
			t.Errorf("%s is not confined: %+v", name, s)
		}
		pod, isInit := strings.CutSuffix(name, "-init")
		if len(s.CapAdd) > 0 && !isInit {
			t.Errorf("%s has the capabilities %v", name, s.CapAdd)
		}
		if app, ok := strings.CutSuffix(name, "-app"); ok {
			d := s.DependsOn[app+"-init"]
			if d.Condition != "service_completed_successfully" || !d.Restart {
				t.Errorf("%s may start before its traffic is redirected: %+v", name, s.DependsOn)
			}
		}
		if _, holds := c.Services[name+"-init"]; holds && s.Restart != "" {
			t.Errorf("%s would come back without redirection (restart: %s)", name, s.Restart)
		}
		if isInit && (s.NetworkMode != "service:"+pod || !s.DependsOn[pod].Restart) {
			t.Errorf("%s is not in the network of %s, or is not run again with it", name, pod)
		}
	}
}

// withoutState leaves out hidden files: the state of a `writ up`.
type withoutState struct{ fs.FS }

func (w withoutState) ReadDir(name string) ([]fs.DirEntry, error) {
	entries, err := fs.ReadDir(w.FS, name)
	return slices.DeleteFunc(entries, func(e fs.DirEntry) bool { return strings.HasPrefix(e.Name(), ".") }), err
}
