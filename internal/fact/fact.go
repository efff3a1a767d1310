// Package fact names what can be known about a workload's process, and gives
// such facts their written form, "KIND:VALUE", as in unix:uid:1000 or
// docker:label:app:web. The names are those of SPIRE's selectors where it has
// them. Registrations list facts, the authority checks their form, and the node
// agent finds out which of them hold for a caller.
package fact

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Kind is what a fact is about: everything before its value.
type Kind string

// The kinds.
const (
	// uid and gid are those that the kernel recorded when the caller connected.
	uid Kind = "unix:uid"
	gid Kind = "unix:gid"
	// supplementaryGID is one of the further groups of the process.
	supplementaryGID Kind = "unix:supplementary_gid"
	// path is the file that the process executes, symbolic links resolved.
	path Kind = "unix:path"
	// sha256 is that of the file's content, in lower-case hexadecimal.
	sha256 Kind = "unix:sha256"
	// parentPath is path of the parent or another ancestor.
	parentPath Kind = "unix:parent_path"
	// containerID is the container's, 64 hexadecimal digits.
	containerID Kind = "container:id"
	// dockerLabel has the value NAME:VALUE.
	dockerLabel Kind = "docker:label"
	// dockerImage is the image as the container was started with,
	// dockerImageID its content address, sha256:....
	dockerImage   Kind = "docker:image"
	dockerImageID Kind = "docker:image_id"
	// dockerName is the container's name.
	dockerName Kind = "docker:name"
	// podUID is that of the Kubernetes pod; the others are what the node's kubelet
	// says of it: its namespace, service account and name.
	podUID            Kind = "k8s:pod-uid"
	podNamespace      Kind = "k8s:ns"
	podServiceAccount Kind = "k8s:sa"
	podName           Kind = "k8s:pod-name"
)

// maxLength bounds a fact in bytes: a path has 4,096 at most.
const maxLength = 4200

// Kinds lists all kinds.
func Kinds() []Kind {
	return []Kind{
		uid, gid, supplementaryGID, path, sha256, parentPath,
		containerID, dockerLabel, dockerImage, dockerImageID, dockerName,
		podUID, podNamespace, podServiceAccount, podName,
	}
}

// Parse checks a written fact and takes it apart.
func Parse(s string) (Kind, string, error) {
	if len(s) > maxLength {
		return "", "", fmt.Errorf("fact has %d bytes, want at most %d", len(s), maxLength)
	}
	if strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f || r == '\uFFFD' }) {
		return "", "", fmt.Errorf("fact %q has bytes that cannot be printed", s)
	}
	for _, k := range Kinds() {
		value, ok := strings.CutPrefix(s, string(k)+":")
		if !ok {
			continue
		}
		if err := check(k, value); err != nil {
			return "", "", fmt.Errorf("fact %q: %w", s, err)
		}
		return k, value, nil
	}
	return "", "", fmt.Errorf("fact %q: it does not begin with %s", s, list())
}

func check(k Kind, value string) error {
	switch k {
	case uid, gid, supplementaryGID:
		n, err := strconv.ParseUint(value, 10, 32)
		if err != nil || strconv.FormatUint(n, 10) != value {
			return fmt.Errorf("%q is no user or group id: want a decimal number", value)
		}
	case path, parentPath:
		if !strings.HasPrefix(value, "/") {
			return fmt.Errorf("%q is no absolute path", value)
		}
	case sha256, containerID:
		return digest(value)
	case dockerImageID:
		sum, ok := strings.CutPrefix(value, "sha256:")
		if !ok {
			return fmt.Errorf("want %s:sha256:DIGITS", k)
		}
		return digest(sum)
	case dockerLabel:
		if name, _, ok := strings.Cut(value, ":"); !ok || name == "" {
			return fmt.Errorf("want %s:NAME:VALUE", k)
		}
	case dockerImage, dockerName, podUID, podNamespace, podServiceAccount, podName:
		if value == "" {
			return fmt.Errorf("want %s:VALUE", k)
		}
	}
	return nil
}

func digest(s string) error {
	if len(s) != 64 || strings.Trim(s, "0123456789abcdef") != "" {
		return fmt.Errorf("%q is no SHA-256: want 64 lower-case hexadecimal digits", s)
	}
	return nil
}

func list() string {
	var names []string
	for _, k := range Kinds() {
		names = append(names, string(k)+":")
	}
	slices.Sort(names)
	return strings.Join(names[:len(names)-1], ", ") + " or " + names[len(names)-1]
}
