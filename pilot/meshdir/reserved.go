package meshdir

import (
	"net/netip"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// Reserved is what belongs to the mesh itself: no object may send traffic there
// or listen there, whoever wrote it. A proxy connects with its own process id and
// user, so that a route to such a place would lend them to everybody who can send
// the proxy a request.
type Reserved struct {
	// Folders hold sockets and state of the mesh: absolute paths, or patterns of
	// them as path.Match has them. /run/writ and .writ in the mesh directory are
	// always reserved.
	Folders []string
	// Addresses are where the services of Writ listen.
	Addresses []netip.Prefix
}

// maxSocketPath is the longest path of a unix socket: sun_path has 108 bytes with
// the terminator (unix(7)). An Envoy refuses its whole configuration for more.
const maxSocketPath = 107

// kernelFolders show processes, devices and the kernel: by /proc/PID/root every
// file has another name.
var kernelFolders = []string{"/proc", "/dev", "/sys"}

// proxyPorts are the ports of a sidecar and of the control plane beside it:
// Istio's, whether or not Writ has something there.
var proxyPorts = []uint32{15000, 15001, 15004, 15006, 15007, 15008, 15010, 15012, 15014, 15020, 15021, 15053, 15090}

// adminPort is an Envoy's administration, which asks nobody who he is.
const adminPort = 15000

// socketProblem says why a path may not be that of a socket, "" if it may.
func (o *Options) socketProblem(p string) string {
	name, abstract := strings.CutPrefix(p, "@")
	switch {
	case len(p) > maxSocketPath:
		return "is longer than 107 bytes, which no socket's path may be"
	case strings.ContainsFunc(p, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return "has a control character in it"
	case abstract && strings.HasPrefix(strings.ToLower(name), "writ"):
		return "is reserved: sockets whose names begin with writ belong to the mesh"
	case abstract:
		return ""
	case !path.IsAbs(p) || strings.HasSuffix(p, "/"):
		return "is not the absolute path of a socket"
	case slices.Contains(strings.Split(p, "/"), ".."):
		return "has \"..\" in it: write the path without"
	}
	return o.folderProblem(p)
}

// folderProblem says that an absolute path lies where nothing of an object's may,
// by its name or by where symbolic links lead on this machine.
func (o *Options) folderProblem(p string) string {
	reserved := append([]string{"/run/writ"}, o.Reserved.Folders...)
	if o.Dir != "" {
		reserved = append(reserved, filepath.Join(o.Dir, ".writ"))
	}
	for _, name := range namesOf(p) {
		if slices.Contains(strings.Split(name, "/"), ".writ") {
			return "is reserved: it lies in the state directory of a mesh"
		}
		for _, folder := range kernelFolders {
			if within(folder, name) {
				return "lies in " + folder + ", where no object may point"
			}
		}
		for _, folder := range reserved {
			if slices.ContainsFunc(namesOf(folder), func(f string) bool { return within(f, name) }) {
				return "is reserved: it lies in a folder of the mesh itself"
			}
		}
	}
	return ""
}

// namesOf gives the names under which an absolute path is known: as written, and
// with symbolic links followed as far as the path exists.
func namesOf(p string) []string {
	p = filepath.Clean(p)
	names := []string{p}
	if rest, ok := strings.CutPrefix(p, "/var/run/"); ok {
		names = append(names, "/run/"+rest) // nearly everywhere, even if not on this machine
	}
	rest := ""
	for at := p; ; at = filepath.Dir(at) {
		if target, err := filepath.EvalSymlinks(at); err == nil {
			names = append(names, filepath.Join(target, rest))
			break
		}
		if at == "/" || at == "." {
			break
		}
		rest = filepath.Join(filepath.Base(at), rest)
	}
	return names
}

// within says whether p is folder or below it; folder may have patterns.
func within(folder, p string) bool {
	if p == folder || strings.HasPrefix(p, folder+"/") {
		return true
	}
	parts := strings.Split(p, "/")
	depth := strings.Count(folder, "/") + 1
	if len(parts) < depth {
		return false
	}
	matched, err := path.Match(folder, strings.Join(parts[:depth], "/"))
	return err == nil && matched
}

// looseIP is a number or dotted numbers, which some resolvers take for an address
// though netip does not: 0x7f000001, 127.1.
var looseIP = regexp.MustCompile(`^(0[xX][0-9a-fA-F]+|[0-9]+)(\.(0[xX][0-9a-fA-F]+|[0-9]+)){0,3}$`)

// addressProblem says why nothing may be sent to port at address, an IP address
// or a name that is resolved, "" if it may.
func (o *Options) addressProblem(address string, port uint32) string {
	host := strings.TrimSuffix(strings.ToLower(address), ".")
	ip, err := netip.ParseAddr(host)
	if err != nil {
		switch {
		case port == adminPort:
			return "is reserved: port 15000 is an Envoy's administration, and the name may lead to it"
		case (isLocalName(host) || looseIP.MatchString(host)) && slices.Contains(proxyPorts, port):
			return "is reserved: the port is the proxy's own"
		}
		return ""
	}
	return o.ipProblem(ip, port)
}

// ipProblem says why nothing may be sent to port at ip, "" if it may.
func (o *Options) ipProblem(ip netip.Addr, port uint32) string {
	ip = ip.Unmap().WithZone("")
	here := ip.IsLoopback() || ip.IsUnspecified() || ip.IsLinkLocalUnicast()
	if here && slices.Contains(proxyPorts, port) {
		return "is reserved: the port is the proxy's own"
	}
	if slices.ContainsFunc(o.Reserved.Addresses, func(p netip.Prefix) bool { return p.Contains(ip) }) {
		return "is reserved: services of the mesh itself listen there"
	}
	return ""
}

// blockProblem says why nothing may be sent to port at the addresses of a block, or at
// the one address.
func (o *Options) blockProblem(text string, port uint32) string {
	block, err := netip.ParsePrefix(text)
	if err != nil {
		return o.addressProblem(text, port)
	}
	if slices.ContainsFunc(o.Reserved.Addresses, block.Overlaps) {
		return "is reserved: services of the mesh itself listen in it"
	}
	here := slices.ContainsFunc(thisMachine, block.Overlaps)
	if here && slices.Contains(proxyPorts, port) {
		return "is reserved: the port is the proxy's own"
	}
	return o.addressProblem(block.Addr().String(), port)
}

// thisMachine are the addresses that mean the machine that asks.
var thisMachine = []netip.Prefix{
	netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("0.0.0.0/32"), netip.MustParsePrefix("169.254.0.0/16"),
	netip.MustParsePrefix("::1/128"), netip.MustParsePrefix("::/128"), netip.MustParsePrefix("fe80::/10"),
}

// isLocalName says whether a name means the machine that asks (RFC 6761, section
// 6.3, and what /etc/hosts usually has).
func isLocalName(host string) bool {
	return slices.Contains([]string{"localhost", "localhost.localdomain", "ip6-localhost", "ip6-loopback"}, host) || strings.HasSuffix(host, ".localhost")
}
