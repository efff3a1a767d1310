package stack

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/writ-mesh/writ/pilot/model"
)

const (
	// announceBound is how long a change of who is ready may take to reach every
	// proxy before the next step is taken all the same.
	announceBound = 3 * time.Second
	// drainBound is how long requests that are on their way may take to end.
	drainBound = 5 * time.Second
)

// rollOut makes want run without losing a request: callers are sent to a replica
// only when it is up, and one is ended only when nobody is sent to it any more
// and its requests are done. hurry says that a program which does not listen yet
// should not be waited for any longer.
func (s *Stack) rollOut(ctx context.Context, want plan, hurry func() bool) error {
	have, wanted := s.last.byKey(), want.byKey()
	arriving, leaving := make(map[string]bool), make(map[string]bool)
	before, after := plan{}, plan{}
	for _, r := range want.replicas {
		old, runs := have[r.key()]
		if !runs {
			arriving[r.key()] = true
		} else if !old.sameProcesses(r) {
			leaving[r.key()] = true
			r = old
		}
		before.replicas = append(before.replicas, r)
	}
	for _, r := range s.last.replicas {
		if _, stays := wanted[r.key()]; !stays {
			leaving[r.key()] = true
			before.replicas = append(before.replicas, r)
		}
	}
	if len(arriving) > 0 {
		if err := s.bringUp(ctx, before, arriving, hurry); err != nil {
			return err
		}
	}
	if len(leaving) > 0 {
		if err := s.announce(ctx, before, leaving); err != nil {
			return err
		}
		s.drain(ctx, before, leaving)
	}
	// What is replaced has ended when reconcile starts it anew.
	for _, r := range want.replicas {
		if old, runs := have[r.key()]; runs && !old.sameProcesses(r) {
			arriving[r.key()] = true
		} else {
			delete(arriving, r.key())
		}
		after.replicas = append(after.replicas, r)
	}
	if len(arriving) > 0 {
		if err := s.bringUp(ctx, after, arriving, hurry); err != nil {
			return err
		}
	}
	if err := s.announce(ctx, after, nil); err != nil {
		return err
	}
	return s.reconcile(ctx, after)
}

// bringUp starts what of p does not run and waits until it serves; nobody is
// sent to the replicas whose key is in arriving.
func (s *Stack) bringUp(ctx context.Context, p plan, arriving map[string]bool, hurry func() bool) error {
	if _, err := s.writeInstances(p, arriving); err != nil {
		return err
	}
	if err := s.reconcile(ctx, p); err != nil {
		return err
	}
	err := s.waitFor(ctx, "writ-pilot", func(ctx context.Context) error {
		for _, r := range p.replicas {
			if arriving[r.key()] {
				if err := serving(ctx, &r); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	s.waitForPrograms(ctx, arriving, hurry)
	return nil
}

// announce tells pilot who is ready and waits until every proxy knows.
func (s *Stack) announce(ctx context.Context, p plan, unready map[string]bool) error {
	st, away := s.status(ctx)
	changed, err := s.writeInstances(p, unready)
	if err != nil || !changed || away != nil { // pilot reads the file when it comes back
		return err
	}
	err = poll(ctx, announceBound, func() error { return s.knows(ctx, st.GetServing()) })
	if err != nil {
		s.log.DebugContext(ctx, "not every proxy has heard of the replicas", slog.Any("error", err))
	}
	return nil
}

// knows says whether a revision newer than serving is live.
func (s *Stack) knows(ctx context.Context, serving uint64) error {
	st, err := s.status(ctx)
	if err != nil {
		return err
	}
	if st.GetServing() <= serving {
		return fmt.Errorf("pilot still serves revision %d", serving)
	}
	return acknowledged(st)
}

// serving says whether a replica's proxy has got its listeners and opened them.
func serving(ctx context.Context, r *replica) error {
	if _, err := askProxy(ctx, r, "/ready"); err != nil {
		return fmt.Errorf("%s is not ready: %w", r.instance.Name, err)
	}
	text, err := askProxy(ctx, r, "/stats?filter="+url.QueryEscape(`^listener_manager\.(lds\.update_success|total_listeners_warming)$`))
	if err != nil {
		return err
	}
	if strings.Contains(text, "update_success: 0\n") || !strings.Contains(text, "total_listeners_warming: 0\n") {
		return fmt.Errorf("%s waits for what its listeners need", r.instance.Name)
	}
	return nil
}

// drain waits until nothing is on its way in the replicas, but not for ever.
func (s *Stack) drain(ctx context.Context, p plan, leaving map[string]bool) {
	err := poll(ctx, drainBound, func() error {
		for _, r := range p.replicas {
			if leaving[r.key()] {
				if err := idle(ctx, &r); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		s.log.InfoContext(ctx, "replicas end with requests on their way", slog.Any("error", err))
	}
}

// idle says whether a replica's proxy serves no request and no connection of
// bytes at the moment. A proxy that does not answer serves nothing.
func idle(ctx context.Context, r *replica) error {
	text, err := askProxy(ctx, r, "/stats?filter="+url.QueryEscape(`^(http\..*\.downstream_rq_active|tcp\..*\.downstream_cx_active)$`))
	if err != nil {
		return nil //nolint:nilerr // gone already
	}
	for lines := bufio.NewScanner(strings.NewReader(text)); lines.Scan(); {
		name, value, _ := strings.Cut(lines.Text(), ": ")
		if strings.Contains(name, "inbound") && value != "0" {
			return fmt.Errorf("%s: %s is %s", r.instance.Name, name, value)
		}
	}
	return nil
}

// askProxy asks the administration interface of a replica's proxy.
func askProxy(ctx context.Context, r *replica, path string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://%s:%d%s", r.admin, model.AdminPort, path), nil)
	if err != nil {
		return "", err
	}
	resp, err := (&http.Client{Timeout: time.Second}).Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = errors.New(resp.Status)
	}
	return string(data), err
}
