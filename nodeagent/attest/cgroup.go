package attest

import (
	"errors"
	"fmt"
	"maps"
	"strings"
)

// cgroups are the control groups of a process: its path in each hierarchy, by
// the names of the controllers; in version 2 there is one, with the name "".
type cgroups map[string]string

// parseCgroups reads /proc/PID/cgroup (cgroups(7)). The kernel writes the paths
// as the reader's cgroup namespace has them; that of the process does not count.
func parseCgroups(data []byte) (cgroups, error) {
	out := make(cgroups)
	for line := range strings.Lines(string(data)) {
		parts := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(parts) != 3 || !strings.HasPrefix(parts[2], "/") {
			return nil, fmt.Errorf("cgroup: line %q is not understood", line)
		}
		out[parts[1]] = parts[2]
	}
	return out, nil
}

func (p *procDir) cgroups() (cgroups, error) {
	data, err := p.read("cgroup")
	if err != nil {
		return nil, err
	}
	return parseCgroups(data)
}

// container is what the names of control groups say about a process.
type container struct {
	// id is the container's, 64 hexadecimal digits, empty if it is in none.
	id string
	// podUID is that of the Kubernetes pod, empty if it is in none.
	podUID string
	// delegated: the group is below one that belongs to a user or a service, who may
	// be allowed to make groups there, with any name. It proves nothing until a
	// runtime confirms it.
	delegated bool
}

var errHierarchies = errors.New("cgroup: the hierarchies name different containers")

// container finds the container of a process. All hierarchies that name one have
// to name the same.
func (c cgroups) container() (container, error) {
	var out container
	for path := range maps.Values(c) {
		found := containerOf(path)
		switch {
		case found.id == "" && found.podUID == "":
		case out.id == "" && out.podUID == "":
			out = found
		case out.id != found.id || out.podUID != found.podUID:
			return container{}, errHierarchies
		default:
			out.delegated = out.delegated || found.delegated
		}
	}
	return out, nil
}

// containerOf reads the path of a control group from the top. The first name of
// a container counts: what is below belongs to that container, which may have
// made groups with the names of others.
func containerOf(path string) container {
	var c container
	pods := false // below the group of all pods
	for part := range strings.SplitSeq(path, "/") {
		switch {
		case part == "user.slice" || strings.HasSuffix(part, ".service"):
			c.delegated = true
		case isPods(part):
			pods = true
		}
		if pods && c.podUID == "" {
			c.podUID = podOf(part)
		}
		if c.id = containerID(part); c.id != "" {
			break
		}
	}
	if c.id == "" && c.podUID == "" {
		return container{}
	}
	return c
}

// isPods recognizes the groups of all pods, with either of kubelet's drivers, and
// kind's.
func isPods(part string) bool {
	return part == "kubepods" || part == "kubepods.slice" || part == "kubelet-kubepods.slice"
}

// podOf takes the pod's UID from the name of its group: "podUID" or, with the
// systemd driver, "kubepods-burstable-podUID.slice" with underscores.
func podOf(part string) string {
	// A container of the pod may follow after a colon (containerd without its
	// systemd driver below kubelet's).
	part, _, _ = strings.Cut(part, ":")
	if slice, ok := strings.CutSuffix(part, ".slice"); ok {
		i := strings.LastIndex(slice, "-pod")
		if i < 0 || !strings.Contains(slice, "kubepods") {
			return ""
		}
		part = strings.ReplaceAll(slice[i+1:], "_", "-")
	}
	uid, ok := strings.CutPrefix(part, "pod")
	// A UUID, or for static pods a hash of 32 digits.
	if !ok || len(uid) != 36 && len(uid) != 32 || strings.Trim(uid, "0123456789abcdef-") != "" {
		return ""
	}
	return uid
}

// containerID takes the id from the name of a container's group: the bare id
// (cgroupfs drivers), "RUNTIME-ID.scope" (systemd drivers), or the end of
// "...:cri-containerd:ID".
func containerID(part string) string {
	if i := strings.LastIndexByte(part, ':'); i >= 0 {
		part = part[i+1:]
	}
	part = strings.TrimSuffix(part, ".scope")
	if i := strings.LastIndexByte(part, '-'); i >= 0 {
		switch part[:i] {
		case "docker", "cri-containerd", "crio", "libpod", "nerdctl":
			part = part[i+1:]
		default:
			return ""
		}
	}
	if len(part) != 64 || strings.Trim(part, "0123456789abcdef") != "" {
		return ""
	}
	return part
}

// within tells whether c is the group of another process or below it, in every
// hierarchy in which that has a group of its own, one at least.
func (c cgroups) within(other cgroups) bool {
	own := false
	for controllers, top := range other {
		if top == "/" {
			continue
		}
		own = true
		if path := c[controllers]; path != top && !strings.HasPrefix(path, top+"/") {
			return false
		}
	}
	return own
}
