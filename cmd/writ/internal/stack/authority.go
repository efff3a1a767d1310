package stack

import (
	"errors"
	"fmt"
	"os"

	"go.yaml.in/yaml/v3"
)

// furtherKeys reads what an operator adds to the authority's configuration: any key
// that the stack does not set itself. The authority checks the values.
func furtherKeys(file string, own map[string]any) (map[string]any, error) {
	if file == "" {
		return nil, nil
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("configuration of the authority: %w", err)
	}
	var more map[string]any
	if err := yaml.Unmarshal(data, &more); err != nil {
		return nil, fmt.Errorf("configuration of the authority: %s: %w", file, err)
	}
	var errs []error
	for key := range more {
		if _, set := own[key]; set {
			errs = append(errs, fmt.Errorf("configuration of the authority: %s: %s is what writ up sets itself: remove it", file, key))
		}
	}
	return more, errors.Join(errs...)
}
