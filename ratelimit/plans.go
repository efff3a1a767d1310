package ratelimit

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"time"

	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
	"github.com/writ-mesh/writ/ratelimit/plans"
	"github.com/writ-mesh/writ/ratelimit/redisstore"
)

// PlansConfig says where the tables are that map callers to the numbers of their plan.
type PlansConfig struct {
	// Folder has a file NAME.plans for each table; it need not exist yet.
	Folder string `yaml:"folder"`
	// Redis are the tables that are in the Redis of the counters.
	Redis []string `yaml:"redis"`
	// MaxCallers bounds the callers of each table.
	MaxCallers int `yaml:"max_callers"`
}

func (p *PlansConfig) validate(c *Config) (errs []error) {
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if p.MaxCallers < 1 || p.MaxCallers > plans.MaxCallers {
		fail("plans.max_callers %d: want 1 to %d", p.MaxCallers, plans.MaxCallers)
	}
	if c.Pilot == "" && (p.Folder != "" || len(p.Redis) > 0) {
		fail("plans: are for QuotaPolicies, which come from pilot")
	}
	if len(p.Redis) > 0 && !c.Redis.shared() {
		fail("plans.redis: there is no Redis, set redis.address")
	}
	form := regexp.MustCompile(configpb.PlanName)
	for _, name := range p.Redis {
		if !form.MatchString(name) {
			fail("plans.redis: %q is no name of a table: small letters, digits and dashes", name)
			continue
		}
		if p.Folder == "" {
			continue
		}
		if file := filepath.Join(p.Folder, name+plans.Suffix); !absent(file) {
			fail("plans.redis: the table %s is in %s as well", name, file)
		}
	}
	return errs
}

func absent(file string) bool {
	_, err := os.Lstat(file)
	return errors.Is(err, fs.ErrNotExist)
}

// openPlans reads the tables of files; those of Redis follow.
func (s *Service) openPlans() (*plans.Book, error) {
	o := plans.Options{
		Folder: s.config.Plans.Folder, Tables: s.config.Plans.Redis, State: s.config.State,
		MaxCallers: s.config.Plans.MaxCallers, Now: time.Now, Log: s.log,
	}
	if len(o.Tables) > 0 {
		where, err := s.config.Redis.options()
		if err != nil {
			return nil, err
		}
		if o.Redis, err = redisstore.OpenPlans(where); err != nil {
			return nil, err
		}
	}
	book := plans.New(o)
	s.rt.Metrics.MustRegister(book.Collector())
	s.tasks = append(s.tasks, book.Run)
	return book, nil
}
