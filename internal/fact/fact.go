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
	// UID and GID are those that the kernel recorded when the caller connected.
	UID Kind = "unix:uid"
	GID Kind = "unix:gid"
	// SupplementaryGID is one of the further groups of the process.
	SupplementaryGID Kind = "unix:supplementary_gid"
	// Path is the file that the process executes, symbolic links resolved.
	Path Kind = "unix:path"
	// SHA256 is that of the file's content, in lower-case hexadecimal.
	SHA256 Kind = "unix:sha256"
	// ParentPath is Path of the parent or another ancestor.
	ParentPath Kind = "unix:parent_path"
	// ContainerID is the container's, 64 hexadecimal digits.
	ContainerID Kind = "container:id"
	// DockerLabel has the value NAME:VALUE.
	DockerLabel Kind = "docker:label"
	// DockerImage is the image as the container was started with,
	// DockerImageID its content address, sha256:....
	DockerImage   Kind = "docker:image"
	DockerImageID Kind = "docker:image_id"
	// DockerName is the container's name.
	DockerName Kind = "docker:name"
	// PodUID is that of the Kubernetes pod.
	PodUID Kind = "k8s:pod-uid"
)

// maxLength bounds a fact in bytes: a path has 4,096 at most.
const maxLength = 4200

// Kinds lists all kinds.
func Kinds() []Kind {
	return []Kind{
		UID, GID, SupplementaryGID, Path, SHA256, ParentPath,
		ContainerID, DockerLabel, DockerImage, DockerImageID, DockerName, PodUID,
	}
}

// Of writes a fact.
func Of(k Kind, value string) string { return string(k) + ":" + value }

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
	case UID, GID, SupplementaryGID:
		n, err := strconv.ParseUint(value, 10, 32)
		if err != nil || strconv.FormatUint(n, 10) != value {
			return fmt.Errorf("%q is no user or group id: want a decimal number", value)
		}
	case Path, ParentPath:
		if !strings.HasPrefix(value, "/") {
			return fmt.Errorf("%q is no absolute path", value)
		}
	case SHA256, ContainerID:
		return digest(value)
	case DockerImageID:
		sum, ok := strings.CutPrefix(value, "sha256:")
		if !ok {
			return fmt.Errorf("want %s:sha256:DIGITS", k)
		}
		return digest(sum)
	case DockerLabel:
		if name, _, ok := strings.Cut(value, ":"); !ok || name == "" {
			return fmt.Errorf("want %s:NAME:VALUE", k)
		}
	case DockerImage, DockerName, PodUID:
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
