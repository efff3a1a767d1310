package stack

import (
	"errors"
	"fmt"
	"os"

	"go.yaml.in/yaml/v3"
)

// furtherKeys reads what an operator adds to the configuration of a service: any key
// that the stack does not set itself. The service checks the values.
func furtherKeys(service, file string, own map[string]any) (map[string]any, error) {
	if file == "" {
		return nil, nil
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("further configuration of %s: %w", service, err)
	}
	var more map[string]any
	if err := yaml.Unmarshal(data, &more); err != nil {
		return nil, fmt.Errorf("further configuration of %s: %s: %w", service, file, err)
	}
	var errs []error
	for key := range more {
		if _, set := own[key]; set {
			errs = append(errs, fmt.Errorf("further configuration of %s: %s: %s is what writ up sets itself: remove it", service, file, key))
		}
	}
	return more, errors.Join(errs...)
}
