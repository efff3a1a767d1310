package attest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"github.com/writ-mesh/writ/internal/fact"
)

// seen are the facts of a caller.
type seen struct {
	// kinds are those that were looked for.
	kinds kinds
	facts []string
	// unread says what could not be found out, and why.
	unread []string
	// again: what could not be found out may be, a moment later.
	again bool
}

func (s *seen) add(k fact.Kind, value string) { s.facts = append(s.facts, written(k, value)) }

func (s *seen) failed(k fact.Kind, err error) {
	s.unread = append(s.unread, fmt.Sprintf("%s: %v", k, err))
}

// collector finds facts out. It is safe for concurrent use.
type collector struct {
	// overflowUID and overflowGID stand for everybody who has no name here.
	overflowUID, overflowGID uint32
	sums                     *sums
	// runtime and pods are nil if there is none.
	runtime containers
	pods    pods
}

// attempts is how often a caller is looked at that executes something else
// meanwhile.
const attempts = 3

var errKeepsChanging = errors.New("it executes one program after the other")

// collect looks for the facts of the kinds that are wanted and for no others. It
// reads the caller's process as it is now: a process that has executed another
// program since it connected has that program's facts.
func (c *collector) collect(ctx context.Context, caller Caller, want kinds) seen {
	s := seen{kinds: want}
	if want.has(kindUID) {
		if caller.UID == c.overflowUID {
			s.failed(kindUID, fmt.Errorf("%d stands for every user that is unknown in this user namespace", caller.UID))
		} else {
			s.add(kindUID, strconv.FormatUint(uint64(caller.UID), 10))
		}
	}
	if want.has(kindGID) {
		if caller.GID == c.overflowGID {
			s.failed(kindGID, fmt.Errorf("%d stands for every group that is unknown in this user namespace", caller.GID))
		} else {
			s.add(kindGID, strconv.FormatUint(uint64(caller.GID), 10))
		}
	}
	want &^= kindsOf(kindUID, kindGID)
	if want == 0 {
		return s
	}
	if caller.PID <= 0 || caller.StartTime == 0 {
		s.unread = append(s.unread, "its process cannot be seen from here")
		return s
	}
	for range attempts {
		found, err := c.ofProcess(ctx, caller, want)
		if err != nil {
			s.unread = append(s.unread, err.Error())
			return s
		}
		if found != nil {
			s.facts = append(s.facts, found.facts...)
			s.unread = append(s.unread, found.unread...)
			s.again = found.again
			return s
		}
	}
	s.unread = append(s.unread, errKeepsChanging.Error())
	s.again = true
	return s
}

// ofProcess returns nil if the process executed another program meanwhile.
func (c *collector) ofProcess(ctx context.Context, caller Caller, want kinds) (*seen, error) {
	p, err := openProcDir(caller.PID, caller.StartTime)
	if err != nil {
		return nil, err
	}
	defer p.close()
	before, berr := p.executable()
	s := new(seen)
	c.credentials(p, want, s)
	c.executable(ctx, p, before, berr, want, s)
	c.container(ctx, p, want, s)
	// Still the same process, or this fails: p is bound to it.
	after, aerr := p.executable()
	if aerr != nil {
		if _, err := p.stat(); err != nil {
			return nil, err
		}
	}
	if berr == nil && aerr == nil && before != after || (berr == nil) != (aerr == nil) {
		return nil, nil //nolint:nilnil // see above
	}
	return s, nil
}

func (c *collector) credentials(p *procDir, want kinds, s *seen) {
	if !want.has(kindSupplementaryGID) {
		return
	}
	creds, err := p.creds()
	if err != nil {
		s.failed(kindSupplementaryGID, err)
		return
	}
	for _, g := range creds.groups {
		if g != c.overflowGID {
			s.add(kindSupplementaryGID, strconv.FormatUint(uint64(g), 10))
		}
	}
}

// executable adds the facts of the file that the process executes, running; with
// unknown that could not be told.
func (c *collector) executable(ctx context.Context, p *procDir, running fileID, unknown error, want kinds, s *seen) {
	if want.has(kindPath) {
		path, err := "", unknown
		if err == nil {
			path, err = p.path(running)
		}
		if err != nil {
			s.failed(kindPath, err)
		} else {
			s.facts = appendFact(s.facts, kindPath, path)
		}
	}
	if want.has(kindSHA256) {
		sum, err := "", unknown
		if err == nil {
			sum, err = c.sums.of(ctx, p, running)
		}
		if err != nil {
			s.failed(kindSHA256, err)
			s.again = s.again || errors.Is(err, errFileChanged)
		} else {
			s.add(kindSHA256, sum)
		}
	}
	if want.has(kindParentPath) {
		paths, err := p.ancestors()
		if err != nil {
			s.failed(kindParentPath, err)
			s.again = true
		}
		for _, path := range slices.Compact(paths) {
			s.facts = appendFact(s.facts, kindParentPath, path)
		}
	}
}

// dockerKinds are those that a container runtime knows.
func dockerKinds() []fact.Kind {
	return []fact.Kind{kindDockerLabel, kindDockerImage, kindDockerImageID, kindDockerName}
}

var (
	errDelegated = errors.New("the name of its group proves nothing: who made the group may have chosen it, and no container runtime confirms it")
	errNoRuntime = errors.New("no container runtime is configured (docker_socket)")
	errForeign   = errors.New("the process is not in the groups of the container whose name they have")
)

func (c *collector) container(ctx context.Context, p *procDir, want kinds, s *seen) {
	docker := want.has(dockerKinds()...)
	if !docker && !want.has(kindContainerID, kindPodUID, kindPodNamespace, kindPodAccount, kindPodName) {
		return
	}
	groups, err := p.cgroups()
	if err != nil {
		s.failed(kindContainerID, err)
		return
	}
	in, err := groups.container()
	if err != nil {
		s.failed(kindContainerID, err)
		return
	}
	if in.id == "" {
		if !in.delegated {
			c.pod(ctx, in.podUID, want, s)
		}
		return
	}
	facts, err := c.ofRuntime(ctx, groups, in.id)
	switch {
	case err == nil:
		s.facts = append(s.facts, facts...)
	case docker:
		s.failed(kindDockerLabel, err)
		s.again = s.again || !errors.Is(err, errNoRuntime)
	}
	// A runtime that does not know the container may be another one than its own;
	// one that says that the process is elsewhere is believed.
	if errors.Is(err, errForeign) || err != nil && in.delegated {
		s.failed(kindContainerID, errDelegated)
		return
	}
	s.add(kindContainerID, in.id)
	c.pod(ctx, in.podUID, want, s)
}

var errNoKubelet = errors.New("no kubelet is configured (kubelet.url)")

// pod adds the facts of a Kubernetes pod; an empty uid is none.
func (c *collector) pod(ctx context.Context, uid string, want kinds, s *seen) {
	if uid == "" {
		return
	}
	s.add(kindPodUID, uid)
	if !want.has(kindPodNamespace, kindPodAccount, kindPodName) {
		return
	}
	if c.pods == nil {
		s.failed(kindPodNamespace, errNoKubelet)
		return
	}
	p, err := c.pods.pod(ctx, uid)
	if err != nil {
		s.failed(kindPodNamespace, err)
		s.again = true
		return
	}
	s.facts = appendFact(s.facts, kindPodNamespace, p.namespace)
	s.facts = appendFact(s.facts, kindPodAccount, p.serviceAccount)
	s.facts = appendFact(s.facts, kindPodName, p.name)
}

// ofRuntime asks the runtime about a container and holds the process to be in it:
// the name of a group alone proves nothing where others may make groups, but they
// cannot make them within those of the container's first process.
func (c *collector) ofRuntime(ctx context.Context, groups cgroups, id string) ([]string, error) {
	if c.runtime == nil {
		return nil, errNoRuntime
	}
	got, err := c.runtime.inspect(ctx, id)
	if err != nil {
		return nil, err
	}
	first, err := openProcDir(got.pid, 0)
	if err != nil {
		return nil, fmt.Errorf("first %w", err)
	}
	defer first.close()
	own, err := first.cgroups()
	if err != nil {
		return nil, err
	}
	// The first process's groups have to be the container's themselves: its id
	// may be that of another process by now.
	if in, err := own.container(); err != nil || in.id != id || !groups.within(own) {
		return nil, errForeign
	}
	return got.facts, nil
}
