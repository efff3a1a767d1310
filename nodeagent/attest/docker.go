package attest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/writ-mesh/writ/internal/fact"
)

const (
	// dockerTimeout bounds one request to the runtime.
	dockerTimeout = 3 * time.Second
	// maxInspect bounds what the runtime says about one container, in bytes.
	maxInspect = 4 << 20
	// maxContainers bounds how many containers are remembered.
	maxContainers = 4096
	// eventsRetryMin and eventsRetryMax bound how long the runtime's events are not
	// asked for again after they ended; without them nothing is remembered.
	eventsRetryMin = time.Second
	eventsRetryMax = 30 * time.Second
)

// runtimeContainer is what a container runtime says about a container.
type runtimeContainer struct {
	// pid is the container's first process as the runtime's host counts.
	pid   int32
	facts []string
}

// containers is a container runtime.
type containers interface {
	// inspect returns errNoContainer for an id that the runtime does not know or
	// that does not run.
	inspect(ctx context.Context, id string) (runtimeContainer, error)
}

var errNoContainer = errors.New("the container runtime does not run a container with this id")

// docker speaks the Docker Engine API (https://docs.docker.com/reference/api/engine/),
// which podman serves too. What it says about a container is remembered until an
// event says that the container changed, and only while events are received.
type docker struct {
	client *http.Client
	log    *slog.Logger

	mu sync.Mutex
	// following: events are received, so that known is up to date.
	following bool
	// epoch rises with each event, so that an answer that an event overtook is
	// not remembered.
	epoch uint64
	known map[string]runtimeContainer
	begun bool
	// ctx is the life of the attestor, which ends the stream of events.
	ctx context.Context //nolint:containedctx // see above
	wg  *sync.WaitGroup
}

// newDocker makes a client for the socket at path. The events are followed from
// the first inspection on, by a goroutine of wg that ends with ctx.
func newDocker(ctx context.Context, path string, wg *sync.WaitGroup, log *slog.Logger) *docker {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{Timeout: dockerTimeout}).DialContext(ctx, "unix", path)
	}
	return &docker{
		client: &http.Client{Transport: &http.Transport{DialContext: dial, MaxIdleConns: 4, IdleConnTimeout: time.Minute}},
		log:    log, known: make(map[string]runtimeContainer), ctx: ctx, wg: wg,
	}
}

// inspect implements containers.
func (d *docker) inspect(ctx context.Context, id string) (runtimeContainer, error) {
	d.mu.Lock()
	if !d.begun && d.ctx.Err() == nil {
		d.begun = true
		d.wg.Go(d.follow)
	}
	c, ok := d.known[id]
	epoch := d.epoch
	d.mu.Unlock()
	if ok {
		return c, nil
	}
	c, err := d.ask(ctx, id)
	if err != nil {
		return runtimeContainer{}, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.following && d.epoch == epoch {
		for old := range d.known { // any one
			if len(d.known) < maxContainers {
				break
			}
			delete(d.known, old)
		}
		d.known[id] = c
	}
	return c, nil
}

// inspected is what is used of GET /containers/ID/json.
type inspected struct {
	ID    string `json:"Id"`
	Name  string `json:"Name"`
	Image string `json:"Image"`
	State struct {
		Running bool  `json:"Running"`
		PID     int32 `json:"Pid"`
	} `json:"State"`
	Config struct {
		Image  string            `json:"Image"`
		Labels map[string]string `json:"Labels"`
	} `json:"Config"`
}

func (d *docker) ask(ctx context.Context, id string) (runtimeContainer, error) {
	ctx, cancel := context.WithTimeout(ctx, dockerTimeout)
	defer cancel()
	resp, err := d.get(ctx, "/containers/"+url.PathEscape(id)+"/json")
	if err != nil {
		return runtimeContainer{}, err
	}
	defer func() { _ = resp.Body.Close() }()
	switch resp.StatusCode {
	case http.StatusOK:
	case http.StatusNotFound:
		return runtimeContainer{}, errNoContainer
	default:
		return runtimeContainer{}, fmt.Errorf("container runtime: %s", resp.Status)
	}
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxInspect+1))
	if err != nil {
		return runtimeContainer{}, fmt.Errorf("container runtime: %w", err)
	}
	if len(data) > maxInspect {
		return runtimeContainer{}, fmt.Errorf("container runtime: more than %d bytes about one container", maxInspect)
	}
	return parseInspected(data, id)
}

// parseInspected reads the answer about the container id.
func parseInspected(data []byte, id string) (runtimeContainer, error) {
	var in inspected
	if err := json.Unmarshal(data, &in); err != nil {
		return runtimeContainer{}, fmt.Errorf("container runtime: %w", err)
	}
	if in.ID != id {
		return runtimeContainer{}, fmt.Errorf("container runtime: asked for %s it tells about %.64q", id, in.ID)
	}
	if !in.State.Running || in.State.PID <= 0 {
		return runtimeContainer{}, errNoContainer
	}
	c := runtimeContainer{pid: in.State.PID}
	for _, f := range []struct {
		kind  fact.Kind
		value string
	}{
		{kindDockerImage, in.Config.Image},
		{kindDockerImageID, in.Image},
		{kindDockerName, strings.TrimPrefix(in.Name, "/")},
	} {
		c.facts = appendFact(c.facts, f.kind, f.value)
	}
	for k, v := range in.Config.Labels {
		if strings.Contains(k, ":") {
			continue // it could be read as another name with another value
		}
		c.facts = appendFact(c.facts, kindDockerLabel, k+":"+v)
	}
	return c, nil
}

// appendFact leaves out what has no written form, which no registration can name.
func appendFact(facts []string, k fact.Kind, value string) []string {
	f := written(k, value)
	if got, _, err := fact.Parse(f); err != nil || got != k {
		return facts
	}
	return append(facts, f)
}

func (d *docker) get(ctx context.Context, path string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://docker"+path, http.NoBody)
	if err != nil {
		return nil, err
	}
	resp, err := d.client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("container runtime: %w", err)
	}
	return resp, nil
}

// follow receives events until the attestor is closed.
func (d *docker) follow() {
	defer d.client.CloseIdleConnections()
	for wait := eventsRetryMin; d.ctx.Err() == nil; wait = min(2*wait, eventsRetryMax) {
		err := d.events(d.ctx)
		d.mu.Lock()
		if d.following {
			wait = eventsRetryMin
		}
		d.following = false
		clear(d.known)
		d.mu.Unlock()
		if d.ctx.Err() != nil {
			return
		}
		d.log.DebugContext(d.ctx, "events of the container runtime ended, containers are asked for each time", slog.Any("error", err))
		select {
		case <-d.ctx.Done():
		case <-time.After(wait):
		}
	}
}

// eventsQuery selects what can change a container's facts or its processes.
const eventsQuery = `/events?filters=%7B%22type%22%3A%5B%22container%22%5D%2C%22event%22%3A%5B%22die%22%2C%22destroy%22%2C%22rename%22%2C%22start%22%2C%22restart%22%2C%22update%22%5D%7D`

func (d *docker) events(ctx context.Context) error {
	resp, err := d.get(ctx, eventsQuery)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("container runtime: events: %s", resp.Status)
	}
	d.mu.Lock()
	d.following = true
	d.mu.Unlock()
	for dec := json.NewDecoder(resp.Body); ; {
		var e struct {
			Actor struct {
				ID string `json:"ID"`
			} `json:"Actor"`
		}
		if err := dec.Decode(&e); err != nil {
			return err
		}
		d.mu.Lock()
		d.epoch++
		delete(d.known, e.Actor.ID)
		d.mu.Unlock()
	}
}
