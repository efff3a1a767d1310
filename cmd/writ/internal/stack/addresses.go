package stack

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"syscall"

	"github.com/writ-mesh/writ/internal/atomicfile"
)

// A mesh lives in a block 127.A.0.0/16 of the loopback range of its own, so that
// several meshes run on one machine. Within the block:
//
//	127.A.0.1     the services of Writ (ca, pilot) and the reservation
//	127.A.0.2..6  monitoring of each service, on monitoringPort
//	127.A.1.1..   the replicas and gateways, in the order in which they came
//
// The block and the addresses are kept in the state directory: a replica has
// the same address after every start.
const (
	firstBlock, lastBlock = 16, 239
	monitoringPort        = 15014
	caPort                = 8443
	pilotPort             = 15012
	// firstAppPort and lastAppPort bound the private ports of programs: below
	// the kernel's ephemeral range, so that no outgoing connection takes one.
	firstAppPort, lastAppPort = 20000, 32000
)

// addressesFile is its name in the state directory.
const addressesFile = "addresses.json"

// addresses is what the state directory remembers.
type addresses struct {
	Block int `json:"block"`
	// Next counts the replica addresses given so far.
	Next int `json:"next"`
	// Hosts maps "<namespace>/<replica>" to its address.
	Hosts map[string]netip.Addr `json:"hosts"`
	// Apps maps "<namespace>/<replica>/<port>" to the program's private port.
	Apps map[string]uint32 `json:"apps"`

	// Gateways maps a port of 127.0.0.1 to the Gateway object that has it, Names
	// the name of a gateway proxy to its: "<namespace>/<name>".
	Gateways map[uint32]string `json:"gateways,omitempty"`
	Names    map[string]string `json:"names,omitempty"`

	path        string
	reservation net.Listener
	// given are the private ports of this run: a program listens there, or is
	// about to, so that they do not look free.
	given map[string]bool
}

// openAddresses loads the addresses and reserves the block by listening on its
// first address, which the kernel lets only one process do.
func openAddresses(path string) (*addresses, error) {
	a, err := readAddresses(path)
	if err != nil {
		return nil, err
	}
	if a.Block == 0 {
		h := fnv.New32a()
		_, _ = h.Write([]byte(path))
		a.Block = firstBlock + int(h.Sum32()%(lastBlock-firstBlock+1))
	}
	return a, a.reserve()
}

// readAddresses loads what an earlier run has given; nothing is no error.
func readAddresses(path string) (*addresses, error) {
	a := &addresses{
		path: path, Hosts: make(map[string]netip.Addr), Apps: make(map[string]uint32), Gateways: make(map[uint32]string),
		Names: make(map[string]string), given: make(map[string]bool),
	}
	data, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, err
	default:
		if err := json.Unmarshal(data, a); err != nil {
			return nil, fmt.Errorf("%s is corrupt (%w); remove it to have addresses given anew", path, err)
		}
	}
	return a, nil
}

func (a *addresses) reserve() error {
	for range lastBlock - firstBlock + 1 {
		l, err := net.Listen("tcp", netip.AddrPortFrom(a.at(0, 1), monitoringPort).String())
		if err == nil {
			a.reservation = l
			return nil
		}
		if !errors.Is(err, syscall.EADDRINUSE) {
			return fmt.Errorf("reserve loopback addresses: %w (Writ's local stack needs Linux, where all of 127.0.0.0/8 is loopback)", err)
		}
		a.Block++
		if a.Block > lastBlock {
			a.Block = firstBlock
		}
		a.Hosts, a.Next = make(map[string]netip.Addr), 0
	}
	return errors.New("reserve loopback addresses: every block of 127.0.0.0/8 is taken by another mesh")
}

func (a *addresses) at(y, z int) netip.Addr {
	return netip.AddrFrom4([4]byte{127, byte(a.Block), byte(y), byte(z)})
}

// host gives the address of a replica or gateway.
func (a *addresses) host(key string) (netip.Addr, error) {
	if addr, ok := a.Hosts[key]; ok {
		return addr, nil
	}
	const perRow, rows = 254, 254
	if a.Next >= perRow*rows {
		return netip.Addr{}, errors.New("more than 64516 replicas have been given an address; remove the state directory to start anew")
	}
	addr := a.at(1+a.Next/perRow, 1+a.Next%perRow)
	a.Next++
	a.Hosts[key] = addr
	return addr, nil
}

// app gives the private port of a program: the one it has in this run, or the one
// it had in an earlier one if that is free.
func (a *addresses) app(key string) (uint32, error) {
	if a.given[key] {
		return a.Apps[key], nil
	}
	port, err := a.choose(key)
	if err == nil {
		a.Apps[key], a.given[key] = port, true
	}
	return port, err
}

func (a *addresses) choose(key string) (uint32, error) {
	taken := make(map[uint32]bool, len(a.Apps))
	for k, p := range a.Apps {
		if k != key {
			taken[p] = true
		}
	}
	if p := a.Apps[key]; p != 0 && !taken[p] && free(p) {
		return p, nil
	}
	// Each block begins at a place of its own: two meshes that start at the same
	// moment do not both see the same port free.
	const span = lastAppPort - firstAppPort
	const perBlock = span / (lastBlock - firstBlock + 1)
	for i := range uint32(span) {
		p := firstAppPort + (uint32(a.Block-firstBlock)*perBlock+i)%span //nolint:gosec // a block is not below the first
		if !taken[p] && free(p) {
			return p, nil
		}
	}
	return 0, fmt.Errorf("no free port between %d and %d for %s", firstAppPort, lastAppPort, key)
}

// free tells whether a program could listen on the port on every address.
func free(port uint32) bool {
	l, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
	if err != nil {
		return false
	}
	return l.Close() == nil
}

func (a *addresses) save() error {
	data, err := json.MarshalIndent(a, "", "  ")
	if err != nil {
		return err
	}
	return atomicfile.Write(a.path, data, 0o600)
}

func (a *addresses) close() error { return a.reservation.Close() }
